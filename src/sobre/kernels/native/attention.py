"""Causal attention of ragged sequences through `attention.c`: on a CPU, no padding, no copies of the scores.

Shapes: N tokens, H query heads, G key/value heads, K query/key width, W value width, R sequences; T queries, the last
of S positions of one.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sobre.kernels import tail
from sobre.kernels.native.build import call, learns


def causal_attention(q_NHK: Tensor, k_NGK: Tensor, v_NGW: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """The same function as `reference.causal_attention`."""
    return _Causal.apply(q_NHK, k_NGK, v_NGW, tuple(lengths), scale)


def tail_attention(q_THK: Tensor, k_SGK: Tensor, v_SGW: Tensor, scale: float) -> Tensor:
    """The same function as `reference.tail_attention`; in blocks of torch's products where it learns."""
    if learns(q_THK, k_SGK, v_SGW):
        return tail.block(q_THK, k_SGK, v_SGW, scale)
    out_THW = q_THK.new_empty(*q_THK.shape[:2], v_SGW.shape[2])
    numbers = (len(q_THK), len(k_SGK), q_THK.shape[1], *k_SGK.shape[1:], v_SGW.shape[2])
    given = (q_THK.contiguous(), k_SGK.contiguous(), v_SGW.contiguous(), out_THW)
    if call("tail_attention", *given, *numbers, float(scale)):
        raise MemoryError(f"attention to {len(k_SGK):,} positions found no memory for its buffers")
    return out_THW


@lru_cache(maxsize=8)
def _places(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """First token and length of each sequence; the same for all layers of a step."""
    lengths_R = torch.tensor(lengths)
    return lengths_R.cumsum(0) - lengths_R, lengths_R


def _attend(name: str, tensors: Sequence[Tensor | None], k_NGK: Tensor, ctx: Any) -> None:
    places, numbers = _places(ctx.lengths), (len(ctx.lengths), ctx.n_heads, *k_NGK.shape[1:], ctx.w_width)
    if call(name, *tensors, *places, *numbers, float(ctx.scale)):
        longest = max(ctx.lengths)
        raise MemoryError(f"attention over sequences of up to {longest:,} tokens found no memory for its buffers")


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_NHK: Tensor, k_NGK: Tensor, v_NGW: Tensor, lengths: tuple[int, ...], scale: float
    ) -> Tensor:
        q_NHK, k_NGK, v_NGW = q_NHK.contiguous(), k_NGK.contiguous(), v_NGW.contiguous()
        out_NHW = q_NHK.new_empty(*q_NHK.shape[:2], v_NGW.shape[2])
        logsum_NH = None
        if any(ctx.needs_input_grad):
            logsum_NH = q_NHK.new_empty(q_NHK.shape[:2], dtype=torch.float32)
        ctx.lengths, ctx.scale, ctx.n_heads, ctx.w_width = lengths, scale, q_NHK.shape[1], v_NGW.shape[2]
        _attend("causal_attention", (q_NHK, k_NGK, v_NGW, out_NHW, logsum_NH), k_NGK, ctx)
        ctx.save_for_backward(q_NHK, k_NGK, v_NGW, out_NHW, logsum_NH)
        return out_NHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_NHW: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q_NHK, k_NGK, v_NGW, out_NHW, logsum_NH = ctx.saved_tensors
        grads = torch.empty_like(q_NHK), torch.empty_like(k_NGK), torch.empty_like(v_NGW)
        given = (q_NHK, k_NGK, v_NGW, out_NHW, logsum_NH, dout_NHW.contiguous())
        _attend("causal_attention_back", (*given, *grads), k_NGK, ctx)
        return *grads, None, None
