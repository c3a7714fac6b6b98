"""Expert parallelism by DeepEP's kernels where it is installed: NVLink inside a machine, RDMA between machines.

Written against `deep_ep.Buffer` of DeepEP 1.2.1 and its normal kernels (github.com/deepseek-ai/DeepEP, docs/legacy.md;
later versions keep the class beside a new one). They do what parallel/dispatch.py does: a token goes once to each
process that holds any of its experts, and what comes back is added up there, without weights, so the weights travel
along. The backward pass of each way is the other way, over the same handle. x travels in bfloat16, and nothing else.

Never run on the hardware: the test has a stand-in of that interface over gloo.

Shapes: as in parallel/dispatch.py.
"""

import importlib.util
import logging
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from sobre.errors import ConfigError
from sobre.parallel.dispatch import ExpertDispatch, answers_here

log = logging.getLogger(__name__)
GRAIN = 8
"""Widths are multiples of it: the kernels copy 16 bytes at a time."""


class DeepEPDispatch:
    """For a MoE layer that holds the experts of this process only; `buffer` is a `deep_ep.Buffer` of their group."""

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer

    def __call__(
        self, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        n_experts = gate_EFD.shape[0] * self.buffer.group_size
        x_RD, weight_RA, expert_RA, handle = _There.apply(x_ND, weights_NA, experts_NA, n_experts, self.buffer)
        y_RD = answers_here(x_RD, expert_RA, weight_RA.to(weights_NA.dtype), gate_EFD, up_EFD, down_EDF)
        y_ND: Tensor = _Back.apply(y_RD, handle, self.buffer)
        return y_ND


class _There(torch.autograd.Function):
    """Tokens to the processes of their experts: x_RD, weight_RA, expert_RA (numbers here, -1 elsewhere), the handle."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weights_NA: Tensor, experts_NA: Tensor, n_experts: int, buffer: Any
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        experts_NA = experts_NA.contiguous()
        to_rank, to_rdma_rank, to_expert, is_in_rank, _ = buffer.get_dispatch_layout(experts_NA, n_experts)
        x_RD, expert_RA, weight_RA, _, ctx.handle, _ = buffer.dispatch(
            x_ND.contiguous(),
            topk_idx=experts_NA,
            topk_weights=weights_NA.float().contiguous(),
            num_tokens_per_rank=to_rank,
            num_tokens_per_rdma_rank=to_rdma_rank,
            is_token_in_rank=is_in_rank,
            num_tokens_per_expert=to_expert,
        )
        ctx.buffer, ctx.dtype = buffer, weights_NA.dtype
        ctx.mark_non_differentiable(expert_RA)
        return x_RD, weight_RA, expert_RA, ctx.handle

    @staticmethod
    def backward(ctx: Any, x_RD: Tensor, weight_RA: Tensor, *_: object) -> tuple[Tensor, Tensor, None, None, None]:
        x_ND, weights_NA, _ = ctx.buffer.combine(
            x_RD.contiguous(), ctx.handle, topk_weights=weight_RA.float().contiguous()
        )
        return x_ND, weights_NA.to(ctx.dtype), None, None, None


class _Back(torch.autograd.Function):
    """The answers of each token from all the processes that it went to, added up where it came from."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, handle: Any, buffer: Any) -> Tensor:
        ctx.way = handle, buffer
        y_ND: Tensor = buffer.combine(y_RD.contiguous(), handle)[0]
        return y_ND

    @staticmethod
    def backward(ctx: Any, y_ND: Tensor) -> tuple[Tensor, None, None]:
        handle, buffer = ctx.way
        return buffer.dispatch(y_ND.contiguous(), handle=handle)[0], None, None


def choose_dispatch(
    wanted: Literal["auto", "all-to-all", "deep-ep"],
    group: dist.ProcessGroup,
    *,
    device: str,
    dtype: torch.dtype,
    width: int,
) -> ExpertDispatch | DeepEPDispatch:
    """How tokens travel over `group`: chosen once for a model, and logged with the reason.

    Raises ConfigError where DeepEP is asked for and cannot be."""
    lacks = None if wanted == "all-to-all" else refuses(dist.get_world_size(group), device, dtype, width)
    if wanted == "deep-ep" and lacks is not None:
        raise ConfigError(f"parallel.dispatch=deep-ep {lacks}; all-to-all works everywhere")
    if wanted != "all-to-all" and lacks is None:
        log.info("experts: tokens travel by DeepEP")
        return DeepEPDispatch(open_buffer(group, width))
    log.info("experts: tokens travel by torch's all-to-all (%s)", f"DeepEP {lacks}" if lacks else "asked for")
    return ExpertDispatch(group)


def refuses(n_processes: int, device: str, dtype: torch.dtype, width: int) -> str | None:
    """Why DeepEP cannot carry tokens of so many numbers among so many processes, or None."""
    if importlib.util.find_spec("deep_ep") is None:
        return "needs the package deep_ep, which is not installed"
    if device != "cuda":
        return f"runs on cuda, not on {device}"
    if dtype != torch.bfloat16:
        return f"sends torch.bfloat16, not {dtype}"
    if width % GRAIN:
        return f"needs a width that is a multiple of {GRAIN}, not {width}"
    from deep_ep import Buffer

    try:
        Buffer.get_dispatch_config(n_processes)
    except AssertionError:
        return f"has no settings for {n_processes} processes"
    return None


def open_buffer(group: dist.ProcessGroup, width: int) -> Any:
    """Room for tokens on their way, as large as DeepEP's own settings for this group ask."""
    from deep_ep import Buffer

    n, token_bytes = dist.get_world_size(group), 2 * width
    settings = (Buffer.get_dispatch_config(n), Buffer.get_combine_config(n))
    nvl_bytes = max(each.get_nvl_buffer_size_hint(token_bytes, n) for each in settings)
    return Buffer(group, nvl_bytes, max(each.get_rdma_buffer_size_hint(token_bytes, n) for each in settings))
