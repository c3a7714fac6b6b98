"""Products of few rows through `linear.c` and `heads.c`, forward only, on a CPU: decoding reads all weights every step.

Shapes: N rows, I input and O output width, leading dimensions free; H heads, K and W widths of a head's matrix.
"""

from torch import Tensor

from sobre.kernels import reference
from sobre.kernels.native.build import call, learns

MOST_ROWS = 16
"""The library, which lays the weights out anew for more of them, is faster beyond."""


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """The same function as `reference.linear`; the library's where it learns, or multiplies many rows."""
    n_out, n_in = weight_OI.shape
    n = x.numel() // n_in
    if n > MOST_ROWS or learns(x, weight_OI) or not weight_OI.is_contiguous():
        return reference.linear(x, weight_OI, bias_O)
    y = x.new_empty(*x.shape[:-1], n_out)
    run("few_rows", x.contiguous(), weight_OI, None, bias_O, y, n, n_in, n_out)
    return y


def run(name: str, *arguments: Tensor | int | None) -> None:
    """One of the page's products of few rows."""
    if call(name, *arguments):
        raise MemoryError("a product of few rows found no memory for its inputs in bytes")


def heads_linear(x_NHK: Tensor, weight_HKW: Tensor) -> Tensor:
    """The same function as `reference.heads_linear`; the library's where it learns, or multiplies many rows."""
    n, n_heads, k_width = x_NHK.shape
    width = weight_HKW.shape[2]
    of_head, of_row, of_column = weight_HKW.stride()
    is_turned = of_row == 1 and of_column == k_width
    if n > MOST_ROWS or not (is_turned or of_column == 1) or learns(x_NHK, weight_HKW):
        return reference.heads_linear(x_NHK, weight_HKW)
    x_NHK = x_NHK if x_NHK.stride(2) == 1 else x_NHK.contiguous()
    y_NHW = x_NHK.new_empty(n, n_heads, width)
    places = (n, n_heads, k_width, width, *x_NHK.stride()[:2], of_head)
    if is_turned:
        call("heads_products", x_NHK, weight_HKW, y_NHW, *places)
    else:
        call("heads_sums", x_NHK, weight_HKW, y_NHW, *places, of_row)
    return y_NHW
