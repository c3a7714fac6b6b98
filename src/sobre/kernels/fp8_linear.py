"""Linear maps with all three products in FP8: forward, gradient of the input, gradient of the weight (V3, 3.3.1).

  forward  y  = x W^T    x in tiles along D, W in blocks
  dgrad    dx = dy W     dy in tiles along F, the same blocks of W transposed
  wgrad    dW = dy^T x   both in tiles along the tokens, 128 x 1 in the layout of x; the sum is float32, as the master's

The input is kept for wgrad. With scales that are powers of two its FP8 form is kept, a byte a number, and quantised
again along the tokens; with others that would round twice, so the input itself is kept. (V3 keeps the input of the
projection after attention in a 12-bit format of its own, which torch lacks; here it is treated like the others.)

Experts: the same three products for each, rows sorted by expert.

Shapes: N tokens, D input width, F output width, M rows sorted by expert, E experts.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sobre.kernels import reference, select
from sobre.kernels.fp8 import TILE, Quantised


def fp8_linear(x_ND: Tensor, weight_FD: Tensor, *, power_of_two: bool = False) -> Tensor:
    """x W^T in the dtype of x, W in its own (float32 masters); gradients alike."""
    return _Linear.apply(x_ND, weight_FD, power_of_two)


def fp8_grouped_linear(
    x_MD: Tensor, weight_EFD: Tensor, counts_E: Tensor | Sequence[int], *, power_of_two: bool = False
) -> Tensor:
    """Rows sorted by expert, counts_E of each, through the FP8 matrix of their expert."""
    counts = counts_E.tolist() if isinstance(counts_E, Tensor) else list(counts_E)
    return _GroupedLinear.apply(x_MD, weight_EFD, counts, power_of_two)


def fp8_moe_ffn(
    x_ND: Tensor,
    experts_NA: Tensor,
    weights_NA: Tensor,
    gate_EFD: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    *,
    power_of_two: bool = False,
) -> Tensor:
    """The routed experts in FP8; a row's tiles are its own, so rounding before or after the gather is the same.

    SwiGLU and the weighted sum stay in the dtype of x.
    """
    linear = partial(fp8_grouped_linear, power_of_two=power_of_two)
    return reference.moe_ffn(x_ND, experts_NA, weights_NA, gate_EFD, up_EFD, down_EDF, linear)


def _keep(x_ND: Tensor, quantised: Quantised, power_of_two: bool) -> tuple[Tensor, Tensor | None]:
    """What wgrad needs of the input: its FP8 form where that loses nothing more, else itself."""
    return (quantised.values_IK, quantised.scales) if power_of_two else (x_ND, None)


def _kept(values_ND: Tensor, scales: Tensor | None) -> Tensor:
    return values_ND if scales is None else Quantised(values_ND, scales, 1).dequantised()


def _wgrad(dy_NF: Tensor, x_ND: Tensor, power_of_two: bool) -> Tensor:
    """dy^T x in float32, the tokens being the contraction."""
    dy_FN = select.fp8_quantise(dy_NF.t(), 1, power_of_two)
    return select.fp8_product(dy_FN, select.fp8_quantise(x_ND.t(), 1, power_of_two), torch.float32)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_FD: Tensor, power_of_two: bool) -> Tensor:
        x, weight = select.fp8_quantise(x_ND, 1, power_of_two), select.fp8_quantise(weight_FD, TILE, power_of_two)
        ctx.save_for_backward(*_keep(x_ND, x, power_of_two), weight.values_IK, weight.scales)
        ctx.power_of_two, ctx.dtypes = power_of_two, (x_ND.dtype, weight_FD.dtype)
        return select.fp8_product(x, weight, x_ND.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NF: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_ND, x_scales, values_FD, scales = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        dx_ND = dweight_FD = None
        if ctx.needs_input_grad[0]:
            weight_DF = Quantised(values_FD, scales, TILE).transposed()
            dx_ND = select.fp8_product(select.fp8_quantise(dy_NF, 1, ctx.power_of_two), weight_DF, x_dtype)
        if ctx.needs_input_grad[1]:
            dweight_FD = _wgrad(dy_NF, _kept(x_ND, x_scales), ctx.power_of_two).to(weight_dtype)
        return dx_ND, dweight_FD, None


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, weight_EFD: Tensor, counts: list[int], power_of_two: bool) -> Tensor:
        x = select.fp8_quantise(x_MD, 1, power_of_two)
        weights = [select.fp8_quantise(weight_FD, TILE, power_of_two) for weight_FD in weight_EFD]
        values_EFD, scales = torch.stack([w.values_IK for w in weights]), torch.stack([w.scales for w in weights])
        ctx.save_for_backward(*_keep(x_MD, x, power_of_two), values_EFD, scales)
        ctx.counts, ctx.power_of_two, ctx.dtypes = counts, power_of_two, (x_MD.dtype, weight_EFD.dtype)
        return select.fp8_grouped_product(x, weights, counts, x_MD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_MF: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_MD, x_scales, values_EFD, scales = ctx.saved_tensors
        counts, power_of_two, (x_dtype, weight_dtype) = ctx.counts, ctx.power_of_two, ctx.dtypes
        dx_MD = dweight_EFD = None
        if ctx.needs_input_grad[0]:
            weights = [Quantised(v, s, TILE).transposed() for v, s in zip(values_EFD, scales, strict=True)]
            dy = select.fp8_quantise(dy_MF, 1, power_of_two)
            dx_MD = select.fp8_grouped_product(dy, weights, counts, x_dtype)
        if ctx.needs_input_grad[1]:
            x_MD = _kept(x_MD, x_scales)
            ends = [0, *torch.tensor(counts).cumsum(0).tolist()]
            dweight_EFD = torch.stack(
                [_wgrad(dy_MF[begin:end], x_MD[begin:end], power_of_two) for begin, end in pairwise(ends)]
            ).to(weight_dtype)
        return dx_MD, dweight_EFD, None, None
