"""FP8 products through torch's scaled product (cuBLAS), which takes 1 x 128 tiles and 128 x 128 blocks on Hopper.

Which layouts of scales it takes depends on the versions of torch, CUDA and the card, so it is tried once on a small
product and held against the specification; where it refuses or differs, the next kernel is chosen and the reason said.
"""

from functools import cache

import torch
from torch import Tensor

from sobre.kernels import fp8
from sobre.kernels.fp8 import TILE, Quantised

TOLERANCE = 2e-2
"""Largest relative difference of the trial, whose result is rounded to bfloat16."""


def product(left: Quantised, right: Quantised, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same function as `fp8.product`, for shapes that are multiples of 128 (others: the Triton kernel)."""
    if any(size % TILE for size in (*left.values_IK.shape, right.values_IK.shape[0])):
        from sobre.kernels import triton_fp8

        return triton_fp8.product(left, right, dtype)
    return _scaled(left, right, dtype)


def _scaled(left: Quantised, right: Quantised, dtype: torch.dtype) -> Tensor:
    left_scales = left.scales.t().contiguous().t()
    right_scales = right.scales.contiguous() if right.rows == TILE else right.scales.t().contiguous().t()
    right_KO = right.values_IK.contiguous().t()
    return torch._scaled_mm(
        left.values_IK.contiguous(), right_KO, scale_a=left_scales, scale_b=right_scales.t(), out_dtype=dtype
    )


@cache
def lacks() -> str | None:
    """What keeps torch's scaled product from being the specification's here, or None."""
    if reason := no_fp8_products():
        return reason
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 512, generator=generator).cuda() for n in (256, 384))
    for rows in (1, TILE):
        for dtype in (torch.bfloat16, torch.float32):
            operands = fp8.quantise(left, 1), fp8.quantise(right, rows)
            wanted = fp8.product(*operands)
            try:
                found = _scaled(*operands, dtype).float()
            except (RuntimeError, NotImplementedError, ValueError) as error:
                return f"torch's scaled product refuses {rows} x 128 scales into {dtype}: {str(error).splitlines()[0]}"
            if float((found - wanted).norm() / wanted.norm()) > TOLERANCE:
                return f"torch's scaled product differs from the specification with {rows} x 128 scales"
    return None


def no_fp8_products() -> str | None:
    """Why this machine multiplies no FP8 numbers, or None."""
    if not torch.cuda.is_available():
        return "needs a GPU, and there is none"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 9):
        return "needs FP8 tensor cores (compute capability 8.9)"
    return None
