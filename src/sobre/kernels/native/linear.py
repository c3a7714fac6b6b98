"""A product of few rows through `linear.c`, forward only, on a CPU: decoding reads all weights for them every step.

Shapes: N rows, I input and O output width; leading dimensions are free.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sobre.kernels.native.build import call

MOST_ROWS = 16
"""The library, which lays the weights out anew for more of them, is faster beyond."""


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """The same function as `reference.linear`; the library's where it learns, or multiplies many rows."""
    n_out, n_in = weight_OI.shape
    n = x.numel() // n_in
    learns = torch.is_grad_enabled() and (x.requires_grad or weight_OI.requires_grad)
    if learns or n > MOST_ROWS or not weight_OI.is_contiguous():
        return F.linear(x, weight_OI, bias_O)
    y = x.new_empty(*x.shape[:-1], n_out)
    call("few_rows", x.contiguous(), weight_OI, bias_O, y, n, n_in, n_out)
    return y
