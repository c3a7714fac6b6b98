"""The routed experts without asking the device anything: for accelerators.

The same order of work as on a CPU (kernels/moe.py): one sort, one gather, grouped products, the routing weight on the
F wide inner activation, one sum back. How many rows each expert has stays on the device (`offs` of the grouped
product), so that the host runs ahead. The three memory-bound parts are operations of their own (kernels/select.py):
`take_rows` copies each token to its experts, `weighted_swiglu` is the activation times the routing weight, `sum_rows`
adds the A copies of a token up. Gathers alone, forward and backward: no atomics, the same bits every time.

Shapes: N tokens, D width, E experts, A active, F expert width, M copies (N * A), sorted by expert.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sobre.kernels import reference
from sobre.kernels.moe import counted

ALIGNED = 16
"""Bytes that a row must be a multiple of, for torch's grouped product."""


class Order(NamedTuple):
    """Copies of tokens, sorted by expert."""

    copy_M: Tensor
    """Copy of each row: token * A + a."""
    token_M: Tensor
    place_NA: Tensor
    """Row of each copy."""
    ends_E: Tensor
    """Where each expert's rows end (int32)."""


class Parts(NamedTuple):
    """The memory-bound operations, as `select` chose them."""

    take_rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    weighted_swiglu: Callable[[Tensor, Tensor, Tensor], Tensor]
    sum_rows: Callable[[Tensor, Tensor, Tensor], Tensor]


def order(experts_NA: Tensor, n_experts: int) -> Order:
    """One stable sort by expert."""
    flat_M = experts_NA.flatten()
    copy_M = flat_M.argsort(stable=True)
    place_M = torch.empty_like(copy_M).index_copy_(0, copy_M, torch.arange(copy_M.numel(), device=copy_M.device))
    ends_E = counted(flat_M, n_experts).cumsum(0, dtype=torch.int32)
    return Order(copy_M, copy_M // experts_NA.shape[1], place_M.view_as(experts_NA), ends_E)


def moe_ffn(
    x_ND: Tensor,
    experts_NA: Tensor,
    weights_NA: Tensor,
    gate_EFD: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    parts: Parts,
) -> Tensor:
    """The same function as `reference.moe_ffn`; in bfloat16 the routing weights are rounded to it."""
    if not is_aligned(x_ND, gate_EFD):
        return reference.moe_ffn(x_ND, experts_NA, weights_NA, gate_EFD, up_EFD, down_EDF)
    rows = order(experts_NA, gate_EFD.shape[0])
    x_MD = parts.take_rows(x_ND, rows.token_M, rows.place_NA)
    gate_MF, up_MF = (F.grouped_mm(x_MD, weight.mT, offs=rows.ends_E) for weight in (gate_EFD, up_EFD))
    inner_MF = parts.weighted_swiglu(gate_MF, up_MF, weights_NA.to(x_ND.dtype).flatten()[rows.copy_M])
    return parts.sum_rows(F.grouped_mm(inner_MF, down_EDF.mT, offs=rows.ends_E), rows.token_M, rows.place_NA)


def is_aligned(x_ND: Tensor, gate_EFD: Tensor) -> bool:
    """Whether torch's grouped product takes the operands."""
    size = x_ND.element_size()
    whole = x_ND.shape[1] * size % ALIGNED == 0 and gate_EFD.shape[1] * size % ALIGNED == 0
    return whole and x_ND.dtype in (torch.float32, torch.bfloat16) and x_ND.shape[0] > 0


def take_rows(x_ND: Tensor, token_M: Tensor, place_NA: Tensor) -> Tensor:
    """The same function as `reference.take_rows`; the gradient is a gather too."""
    return _TakeRows.apply(x_ND, token_M, place_NA)


def sum_rows(y_MD: Tensor, token_M: Tensor, place_NA: Tensor) -> Tensor:
    """The same function as `reference.sum_rows`; the gradient is a gather too."""
    return _SumRows.apply(y_MD, token_M, place_NA)


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, token_M: Tensor, place_NA: Tensor) -> Tensor:
        ctx.save_for_backward(place_NA)
        return x_ND.index_select(0, token_M)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_MD: Tensor) -> tuple[Tensor, None, None]:
        (place_NA,) = ctx.saved_tensors
        return reference.sum_rows(dx_MD, place_NA, place_NA), None, None


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_MD: Tensor, token_M: Tensor, place_NA: Tensor) -> Tensor:
        ctx.save_for_backward(token_M)
        return reference.sum_rows(y_MD, token_M, place_NA)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, None, None]:
        (token_M,) = ctx.saved_tensors
        return dy_ND.index_select(0, token_M), None, None
