"""Linear maps with all three products in FP8: forward, gradient of the input, gradient of the weight (V3, 3.3.1).

  forward  y  = x W^T    x in tiles along D, W in blocks
  dgrad    dx = dy W     dy in tiles along F, the same blocks of W transposed
  wgrad    dW = dy^T x   both in tiles along the tokens, 128 x 1 in the layout of x; the sum is float32, as the master's

The input is kept for wgrad. With scales that are powers of two its FP8 form is kept, a byte a number, and quantised
again along the tokens; with others that would round twice, so the input itself is kept. (V3 keeps the input of the
projection after attention in a 12-bit format of its own, which torch lacks; here it is treated like the others.)

Experts: the same three products for each. Rows are sorted by expert and each expert's are filled up with zeros to a
multiple of 128, so that no tile, along the tokens too, holds rows of two. How many rows that makes is not asked of the
device: there is room for the most, and blocks beyond the last expert belong to none.

Shapes: N tokens, A active experts, D input width, F output width, E experts, P rows sorted by expert and filled up, X
blocks of 128 of them.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sobre.kernels import experts, select
from sobre.kernels.fp8 import TILE, Quantised


def fp8_linear(x_ND: Tensor, weight_FD: Tensor, *, power_of_two: bool = False) -> Tensor:
    """x W^T in the dtype of x, W in its own (float32 masters); gradients alike."""
    return _Linear.apply(x_ND, weight_FD, power_of_two)


def fp8_grouped_linear(x_PD: Tensor, weight_EFD: Tensor, expert_X: Tensor, *, power_of_two: bool = False) -> Tensor:
    """Blocks of 128 rows through the FP8 matrix of their expert."""
    return _GroupedLinear.apply(x_PD, weight_EFD, expert_X, power_of_two)


class Filled(NamedTuple):
    """Copies of tokens, sorted by expert and filled up."""

    token_P: Tensor
    """Token of each row; N, a row of zeros, where it is none's."""
    place_NA: Tensor
    """Row of each copy; then, for the row of zeros, the last row, which is never a token's."""
    expert_X: Tensor
    """Expert of each block; E where it is none's."""


def filled(experts_NA: Tensor, n_experts: int) -> Filled:
    """Where every copy goes, by operations of the device alone."""
    (n_tokens, n_active), device = experts_NA.shape, experts_NA.device
    rows = experts.order(experts_NA, n_experts)
    ends_E = rows.ends_E.long()
    counts_E = ends_E.diff(prepend=ends_E.new_zeros(1))
    blocks_E = (counts_E + TILE - 1) // TILE
    block_ends_E = blocks_E.cumsum(0)
    n_blocks = -(-n_tokens * n_active // TILE) + n_experts  # more than are filled, so the last one is not
    shift_E = (block_ends_E - blocks_E) * TILE - (ends_E - counts_E)
    place_NA = rows.place_NA + shift_E[experts_NA]
    token_NA = torch.arange(n_tokens, device=device).unsqueeze(1).expand(-1, n_active)
    token_P = torch.full((n_blocks * TILE,), n_tokens, device=device)
    token_P.index_copy_(0, place_NA.flatten(), token_NA.flatten())
    expert_X = torch.searchsorted(block_ends_E, torch.arange(n_blocks, device=device), right=True)
    return Filled(token_P, F.pad(place_NA, (0, 0, 0, 1), value=len(token_P) - 1), expert_X)


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
    """The routed experts in FP8. SwiGLU, the routing weight on it and the sum of a token's experts stay in the dtype
    of x, as without FP8 (kernels/experts.py)."""
    rows = filled(experts_NA, gate_EFD.shape[0])
    linear = partial(fp8_grouped_linear, expert_X=rows.expert_X, power_of_two=power_of_two)
    x_PD = select.take_rows(F.pad(x_ND, (0, 0, 0, 1)), rows.token_P, rows.place_NA)
    places_M, weights_M = rows.place_NA[:-1].flatten(), weights_NA.flatten().to(x_ND.dtype)
    weights_P = x_ND.new_zeros(len(rows.token_P)).index_copy(0, places_M, weights_M)
    inner_PF = select.weighted_swiglu(linear(x_PD, gate_EFD), linear(x_PD, up_EFD), weights_P)
    return select.sum_rows(linear(inner_PF, down_EDF), rows.token_P, rows.place_NA)[:-1]


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
    def forward(ctx: Any, x_PD: Tensor, weight_EFD: Tensor, expert_X: Tensor, power_of_two: bool) -> Tensor:
        x, weights = select.fp8_quantise(x_PD, 1, power_of_two), select.fp8_quantise(weight_EFD, TILE, power_of_two)
        ctx.save_for_backward(*_keep(x_PD, x, power_of_two), weights.values_IK, weights.scales, expert_X)
        ctx.power_of_two, ctx.dtypes = power_of_two, (x_PD.dtype, weight_EFD.dtype)
        return select.fp8_grouped_product(x, weights, expert_X, x_PD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_PF: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_PD, x_scales, values_EFD, scales, expert_X = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        dx_PD = dweight_EFD = None
        if ctx.needs_input_grad[0]:
            weights_EDF = Quantised(values_EFD, scales, TILE).transposed()
            dy = select.fp8_quantise(dy_PF, 1, ctx.power_of_two)
            dx_PD = select.fp8_grouped_product(dy, weights_EDF, expert_X, x_dtype)
        if ctx.needs_input_grad[1]:
            dy_FP, x_DP = (
                select.fp8_quantise(rows.t(), 1, ctx.power_of_two) for rows in (dy_PF, _kept(x_PD, x_scales))
            )
            dweight_EFD = select.fp8_grouped_wgrad(dy_FP, x_DP, expert_X, len(values_EFD)).to(weight_dtype)
        return dx_PD, dweight_EFD, None, None
