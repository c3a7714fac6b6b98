"""FP8 products through torch's scaled product (cuBLAS), which takes 1 x 128 tiles and 128 x 128 blocks on Hopper.

torch knows the kind of scales by their shapes and strides (aten/src/ATen/native/cuda/ScaledBlas.cpp): those of tiles
column after column, those of blocks row after row, each row padded to a multiple of four. Which layouts it takes
depends on the versions of torch, CUDA and the card, so it is tried once on small products and held against the
specification; where it refuses or differs, the next kernel is chosen and the reason said.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sobre.kernels import fp8
from sobre.kernels.fp8 import TILE, Quantised
from sobre.kernels.unfit import log_once

TOLERANCE = 2e-2
"""Largest relative difference of a trial, whose result may be rounded to bfloat16."""
PADDED = 4
"""Scales of a row of blocks: 16 bytes."""


def product(left: Quantised, right: Quantised, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same function as `fp8.product`, for shapes that are multiples of 128 (others: the Triton kernel).

    A single tile goes there, too: its scales look like those of whole rows, for which torch has other rules.
    """
    sizes = (*left.values_IK.shape, right.values_IK.shape[0])
    if any(size % TILE for size in sizes) or left.scales.shape[1] == 1:
        from sobre.kernels import triton_fp8

        log_once("fp8_product", "cublas", f"takes more than one tile, in multiples of {TILE}, not {sizes}", "triton")
        return triton_fp8.product(left, right, dtype)
    right_KO = right.values_IK.contiguous().t()
    return torch._scaled_mm(
        left.values_IK.contiguous(), right_KO, scale_a=_laid_out(left), scale_b=_laid_out(right).t(), out_dtype=dtype
    )


def _laid_out(operand: Quantised) -> Tensor:
    """Its scales, as torch tells them apart."""
    if operand.rows == 1:
        return operand.scales.t().contiguous().t()
    n_tiles = operand.scales.shape[1]
    return F.pad(operand.scales.contiguous(), (0, -n_tiles % PADDED))[:, :n_tiles]


@cache
def lacks() -> str | None:
    """What keeps torch's scaled product from being the specification's here, or None."""
    asked = [(rows, dtype) for rows in (1, TILE) for dtype in (torch.bfloat16, torch.float32)]
    return no_fp8_products() or differs(product, asked, "torch's scaled product")


def differs(
    multiply: Callable[[Quantised, Quantised, torch.dtype], Tensor],
    asked: Sequence[tuple[int, torch.dtype]],
    name: str,
) -> str | None:
    """How `multiply` differs from the specification on this GPU, or None; `asked`: rows of the right operand's tiles,
    and the result's dtype. Five tiles: no multiple of four."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 5 * TILE, generator=generator).cuda() for n in (2 * TILE, 3 * TILE))
    for rows, dtype in asked:
        operands = fp8.quantise(left, 1), fp8.quantise(right, rows)
        wanted = fp8.product(*operands)
        try:
            found = multiply(*operands, dtype).float()
        except (RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError, OSError) as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            return f"{name} refuses {rows} x 128 scales into {dtype}: {reason}"
        if not float((found - wanted).norm() / wanted.norm()) <= TOLERANCE:
            return f"{name} differs from the specification with {rows} x 128 scales"
    return None


def no_fp8_products() -> str | None:
    """Why the kernels for FP8 numbers do not run on this machine, or None."""
    if not torch.cuda.is_available():
        return "needs a GPU, and there is none"
    if torch.version.hip is not None:
        return "multiplies E4M3 as NVIDIA's cards have it, and AMD's MI300 has another"
    if torch.cuda.get_device_capability() < (8, 9):
        return "needs FP8 tensor cores (compute capability 8.9)"
    return None
