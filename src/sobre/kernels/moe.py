"""The routed experts as one autograd function: one sort, one gather, products per expert, one gather back.

DeepSeekMoE (arXiv 2412.19437, 2.1.2): y = sum over the A experts of a token of weight * down(silu(gate x) * (up x)).
Three choices make it fast on CPUs:
- the routing weight is multiplied into the F wide inner activation, so the way back is a plain sum of A rows
  (`embedding_bag`, which adds in float32), and the gradient of the weight needs no second look at the output;
- an expert's rows go through all its products at once, so what lies between them stays in the level-2 cache; gate and
  up, side by side, are one product;
- row counts are padded to multiples of 32, since oneDNN builds a new primitive for every shape that it has not met,
  which in bfloat16 takes 0.6 ms, three times the product itself. Padding rows repeat token 0 with weight 0: they add
  exact zeros, forward and backward.
A pass without gradients on few tokens (decoding) is one call where there is a compiler (native/experts.py); elsewhere
it skips the padding, and on one token it sorts nothing and calls no product for the experts that it does not visit.

Shapes: N tokens, D width, E experts, A active, F expert width, X widths of gate and up (2F), M copies (N * A), P padded
copies, U rows of one expert.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sobre.kernels import reference

PAD = 32
FEW = 64
"""Copies for each expert, on average, up to which one call in C is faster than the library's products."""


class Parts(NamedTuple):
    """What may be written in C; torch's operations where there is no compiler."""

    gated: Callable[[Tensor, Tensor], Tensor]
    """As `weighted_swiglu`."""
    gated_back: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    """As `weighted_swiglu_back`."""
    few_tokens: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None
    """`moe_ffn` of few tokens without gradients."""


def weighted_swiglu(gate_up_UX: Tensor, weights_U: Tensor) -> Tensor:
    """silu(gate) * up times one weight for each row; a row holds gate, then up."""
    gate_UF, up_UF = gate_up_UX.chunk(2, dim=1)
    return F.silu(gate_UF).mul_(up_UF).mul_(weights_U.unsqueeze(1))


def weighted_swiglu_back(dinner_UF: Tensor, gate_up_UX: Tensor, weights_U: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate, up (side by side) and weights, and what `weighted_swiglu` returned; overwrites `dinner_UF`."""
    gate_UF, up_UF = gate_up_UX.chunk(2, dim=1)
    weights_U1 = weights_U.unsqueeze(1)
    act_UF = F.silu(gate_UF)
    inner_UF = act_UF * up_UF
    dweights_U = (dinner_UF * inner_UF).sum(-1)
    dinner_UF.mul_(weights_U1)
    dup_UF = act_UF.mul_(dinner_UF)
    dgate_UF = torch.ops.aten.silu_backward(dinner_UF.mul_(up_UF), gate_UF)
    return torch.cat((dgate_UF, dup_UF), dim=1), dweights_U, inner_UF.mul_(weights_U1)


IN_TORCH = Parts(weighted_swiglu, weighted_swiglu_back, None)


class Plan(NamedTuple):
    """Where every copy of a token lies among the rows sorted by expert."""

    token_P: Tensor
    """Token of each row."""
    place_NA: Tensor
    """Row of each copy."""
    rows: list[tuple[int, slice]]
    """Experts with work, and their rows."""


def counted(values_M: Tensor, n: int) -> Tensor:
    """How often each of 0..n-1 comes up; unlike `bincount`, without asking an accelerator what the largest is."""
    if values_M.device.type == "cpu":
        return values_M.bincount(minlength=n)
    return values_M.new_zeros(n).index_add_(0, values_M, torch.ones_like(values_M))


def plan_rows(experts_NA: Tensor, n_experts: int, pad: int) -> Plan:
    """One stable sort by expert; each visited expert gets a multiple of `pad` rows."""
    chosen_M, order_M = experts_NA.flatten().sort(stable=True)
    counts_E = chosen_M.bincount(minlength=n_experts)
    padded_E = (counts_E + (pad - 1)).div_(pad, rounding_mode="floor").mul_(pad)
    ends_E = padded_E.cumsum(0)
    shift_E = ends_E - padded_E - (counts_E.cumsum(0) - counts_E)
    place_M = torch.arange(order_M.numel(), device=order_M.device).add_(shift_E[chosen_M])
    ends = ends_E.tolist()
    token_M = torch.arange(len(experts_NA), device=order_M.device).repeat_interleave(experts_NA.shape[1])
    token_P = order_M.new_zeros(ends[-1]).index_copy_(0, place_M, token_M.index_select(0, order_M))
    place_NA = torch.empty_like(order_M).index_copy_(0, order_M, place_M).view_as(experts_NA)
    begins = [0, *ends[:-1]]
    rows = [(e, slice(begins[e], ends[e])) for e in range(n_experts) if begins[e] < ends[e]]
    return Plan(token_P, place_NA, rows)


def moe_ffn(
    x_ND: Tensor,
    experts_NA: Tensor,
    weights_NA: Tensor,
    gate_EFD: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    parts: Parts = IN_TORCH,
) -> Tensor:
    """The same function as `reference.moe_ffn`; in bfloat16 the routing weights are rounded to it."""
    tensors = (x_ND, weights_NA, gate_EFD, up_EFD, down_EDF)
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if not learns and parts.few_tokens is not None and experts_NA.numel() <= FEW * gate_EFD.shape[0]:
        return parts.few_tokens(x_ND, experts_NA, weights_NA, gate_EFD, up_EFD, down_EDF)
    weights_NA = weights_NA.to(x_ND.dtype)
    if not learns and experts_NA.shape[0] == 1 and experts_NA.device.type == "cpu":  # elsewhere the host would wait
        return _one_token(x_ND, experts_NA, weights_NA, gate_EFD, up_EFD, down_EDF)
    if not learns and experts_NA.numel() <= PAD * gate_EFD.shape[0]:
        return _few_tokens(x_ND, experts_NA, weights_NA, gate_EFD, up_EFD, down_EDF)
    return _RoutedExperts.apply(x_ND, experts_NA, weights_NA, gate_EFD, up_EFD, down_EDF, parts)


def _one_token(
    x_1D: Tensor, experts_1A: Tensor, weights_1A: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Forward only: the matrices of the token's experts where they lie.

    torch's grouped product on CPUs calls a product for every expert of the layer, those without rows too.
    """
    y_AD = []
    for expert in experts_1A[0].tolist():
        inner_1F = F.silu(F.linear(x_1D, gate_EFD[expert]), inplace=True).mul_(F.linear(x_1D, up_EFD[expert]))
        y_AD.append(F.linear(inner_1F, down_EDF[expert]))
    return torch.mm(weights_1A, torch.cat(y_AD))


def _few_tokens(
    x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Forward only, when calls cost more than products.

    In bfloat16 one batched product, every expert filled up to the busiest one, is up to 2.7 times faster than a product
    for each expert (oneDNN); not so when the filling outgrows the work, and not in float32 (MKL).
    """
    n_experts, n_active = gate_EFD.shape[0], experts_NA.shape[1]
    chosen_M, order_M = experts_NA.flatten().sort(stable=True)
    counts_E = chosen_M.bincount(minlength=n_experts)
    token_M = order_M.div(n_active, rounding_mode="floor")
    busiest = -(-int(counts_E.max()) // 4) * 4 if order_M.numel() else 0
    if x_ND.dtype == torch.bfloat16 and n_experts * busiest <= 4 * order_M.numel():
        first_E = torch.arange(n_experts, device=order_M.device) * busiest - (counts_E.cumsum(0) - counts_E)
        place_M = first_E[chosen_M].add_(torch.arange(order_M.numel(), device=order_M.device))
        x_ESD = x_ND.new_zeros(n_experts * busiest, x_ND.shape[1]).index_copy_(
            0, place_M, x_ND.index_select(0, token_M)
        )
        x_ESD = x_ESD.unflatten(0, (n_experts, busiest))
        inner_ESF = F.silu(torch.bmm(x_ESD, gate_EFD.mT), inplace=True).mul_(torch.bmm(x_ESD, up_EFD.mT))
        y_MD = torch.bmm(inner_ESF, down_EDF.mT).flatten(0, 1)
    else:
        place_M = torch.arange(order_M.numel(), device=order_M.device)
        x_MD = x_ND.index_select(0, token_M)
        inner_MF = F.silu(grouped_linear(x_MD, gate_EFD, counts_E), inplace=True)
        y_MD = grouped_linear(inner_MF.mul_(grouped_linear(x_MD, up_EFD, counts_E)), down_EDF, counts_E)
    places_M = torch.empty_like(order_M).index_copy_(0, order_M, place_M)
    y_NAD = y_MD.index_select(0, places_M).unflatten(0, experts_NA.shape)
    return torch.bmm(weights_NA.unsqueeze(1), y_NAD).squeeze(1)


def grouped_linear(x_MD: Tensor, weight_EFD: Tensor, counts_E: Tensor | Sequence[int]) -> Tensor:
    """The same function as `reference.grouped_linear`, through torch's grouped product where it takes the operands."""
    aligned = x_MD.shape[1] * x_MD.element_size() % 16 == 0 and weight_EFD.shape[1] * x_MD.element_size() % 16 == 0
    if not aligned or x_MD.dtype not in (torch.float32, torch.bfloat16) or not x_MD.shape[0]:
        return reference.grouped_linear(x_MD, weight_EFD, counts_E)
    counts_E = torch.as_tensor(counts_E, device=x_MD.device)
    return F.grouped_mm(x_MD.contiguous(), weight_EFD.mT, offs=counts_E.cumsum(0, dtype=torch.int32))


def by_expert(x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, expert: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Forward only, for experts that lie in a form of their own: expert(e, x_MD), once for each that is visited."""
    y_ND = torch.zeros_like(x_ND)
    weights_NA = weights_NA.to(x_ND.dtype)
    for visited in experts_NA.unique().tolist():
        token_M, choice_M = (experts_NA == visited).nonzero(as_tuple=True)
        y_MD = expert(visited, x_ND[token_M]) * weights_NA[token_M, choice_M, None]
        y_ND.index_add_(0, token_M, y_MD)
    return y_ND


def _sum_copies(rows_PD: Tensor, place_NA: Tensor) -> Tensor:
    """Sum over the A rows of each token."""
    if rows_PD.dtype == torch.float64 or rows_PD.shape[0] == 0:
        return rows_PD[place_NA].sum(1)
    return F.embedding_bag(place_NA, rows_PD, mode="sum")


class _RoutedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        experts_NA: Tensor,
        weights_NA: Tensor,
        gate_EFD: Tensor,
        up_EFD: Tensor,
        down_EDF: Tensor,
        parts: Parts,
    ) -> Tensor:
        plan = plan_rows(experts_NA, gate_EFD.shape[0], PAD)
        gate_up_EXD = torch.cat((gate_EFD, up_EFD), dim=1)
        x_PD = x_ND.index_select(0, plan.token_P)
        weights_P = x_ND.new_zeros(len(x_PD)).index_copy_(0, plan.place_NA.flatten(), weights_NA.flatten())
        gate_up_PX = x_ND.new_empty(len(x_PD), gate_up_EXD.shape[1])
        y_PD = torch.empty_like(x_PD)
        for expert, rows in plan.rows:
            gate_up_UX = torch.mm(x_PD[rows], gate_up_EXD[expert].t(), out=gate_up_PX[rows])
            inner_UF = parts.gated(gate_up_UX, weights_P[rows])
            torch.mm(inner_UF, down_EDF[expert].t(), out=y_PD[rows])
        # the input is kept for the gradients of gate and up, which frozen experts do without
        kept_PD = x_PD if any(ctx.needs_input_grad[3:5]) else None
        ctx.save_for_backward(kept_PD, weights_P, gate_up_PX, gate_up_EXD, down_EDF)
        ctx.plan, ctx.parts = plan, parts
        return _sum_copies(y_PD, plan.place_NA)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        x_PD, weights_P, gate_up_PX, gate_up_EXD, down_EDF = ctx.saved_tensors
        plan: Plan = ctx.plan
        dy_PD = dy_ND.index_select(0, plan.token_P)
        dx_PD, dweights_P = torch.empty_like(dy_PD), torch.empty_like(weights_P)
        dgate_up_EXD = None if x_PD is None else torch.zeros_like(gate_up_EXD)
        ddown_EDF = torch.zeros_like(down_EDF) if ctx.needs_input_grad[5] else None
        for expert, rows in plan.rows:
            dy_UD = dy_PD[rows]
            dinner_UF = torch.mm(dy_UD, down_EDF[expert])
            dgate_up_UX, dweights_P[rows], inner_UF = ctx.parts.gated_back(dinner_UF, gate_up_PX[rows], weights_P[rows])
            if ddown_EDF is not None:
                torch.mm(dy_UD.t(), inner_UF, out=ddown_EDF[expert])
            if dgate_up_EXD is not None:
                torch.mm(dgate_up_UX.t(), x_PD[rows], out=dgate_up_EXD[expert])
            torch.mm(dgate_up_UX, gate_up_EXD[expert], out=dx_PD[rows])
        dx_ND = _sum_copies(dx_PD, plan.place_NA)
        dweights_NA = dweights_P[plan.place_NA]
        dgate_EFD = dup_EFD = None
        if dgate_up_EXD is not None:  # each in memory of its own: a fused optimizer reads gradients as they lie
            dgate_EFD, dup_EFD = (part.contiguous() for part in dgate_up_EXD.chunk(2, dim=1))
        return dx_ND, None, dweights_NA, dgate_EFD, dup_EFD, ddown_EDF, None
