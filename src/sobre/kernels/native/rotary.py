"""Rotary embedding, and the heads of latent attention put together, through `rotary.c`, on a CPU.

Shapes: N tokens, M of keys, H heads, K query/key width, of which the last R are rotary, R2 half of them, W value width,
X width of what keys and values of a head are made from, K - R + W.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sobre.kernels.native.build import call


def rope(x_NHR: Tensor, cos_NR2: Tensor, sin_NR2: Tensor, interleaved: bool) -> Tensor:
    """The same function as `reference.rope`; cos and sin are constants."""
    if not torch.is_grad_enabled():
        return _turned(x_NHR, cos_NR2, sin_NR2, interleaved, 1.0)
    return _Rope.apply(x_NHR, cos_NR2, sin_NR2, interleaved)


def latent_heads(
    q_NHK: Tensor, kv_MHX: Tensor, k_rope_MR: Tensor, cos_NR2: Tensor, sin_NR2: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same function as `reference.latent_heads`; cos and sin are constants."""
    return _LatentHeads.apply(q_NHK, kv_MHX, k_rope_MR, cos_NR2, sin_NR2, interleaved)


def _turned(x_NHR: Tensor, cos_NR2: Tensor, sin_NR2: Tensor, interleaved: bool, turn: float) -> Tensor:
    x_NHR, y_NHR = x_NHR.contiguous(), torch.empty_like(x_NHR, memory_format=torch.contiguous_format)
    cos_NR2, sin_NR2 = cos_NR2.float().contiguous(), sin_NR2.float().contiguous()
    call("rope", x_NHR, cos_NR2, sin_NR2, y_NHR, *x_NHR.shape, int(interleaved), turn)
    return y_NHR


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NHR: Tensor, cos_NR2: Tensor, sin_NR2: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos_NR2, sin_NR2)
        ctx.interleaved = interleaved
        return _turned(x_NHR, cos_NR2, sin_NR2, interleaved, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NHR: Tensor) -> tuple[Tensor, None, None, None]:
        cos_NR2, sin_NR2 = ctx.saved_tensors
        return _turned(dy_NHR, cos_NR2, sin_NR2, ctx.interleaved, -1.0), None, None, None


class _LatentHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_NHK: Tensor,
        kv_MHX: Tensor,
        k_rope_MR: Tensor,
        cos_NR2: Tensor,
        sin_NR2: Tensor,
        interleaved: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (n, h, k), (m, _, x), r = q_NHK.shape, kv_MHX.shape, k_rope_MR.shape[1]
        w = x - (k - r)
        cos_NR2, sin_NR2 = cos_NR2.float().contiguous(), sin_NR2.float().contiguous()
        ctx.save_for_backward(cos_NR2, sin_NR2)
        ctx.sizes = (n, m, h, k, w, r, int(interleaved))
        made = q_NHK.new_empty(n, h, k), kv_MHX.new_empty(m, h, k), kv_MHX.new_empty(m, h, w)
        given = (q_NHK.contiguous(), kv_MHX.contiguous(), k_rope_MR.contiguous(), cos_NR2, sin_NR2)
        call("latent_heads", *given, *made, *ctx.sizes)
        return made

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dq_NHK: Tensor, dk_MHK: Tensor, dv_MHW: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        n, m, h, k, w, r, _ = ctx.sizes
        grads = dq_NHK.new_empty(n, h, k), dk_MHK.new_empty(m, h, k - r + w), dk_MHK.new_empty(m, r)
        given = (dq_NHK.contiguous(), dk_MHK.contiguous(), dv_MHW.contiguous(), *ctx.saved_tensors)
        if call("latent_heads_back", *given, *grads, *ctx.sizes):
            raise MemoryError(f"the gradient of a rotary key of {r:,} numbers found no memory for its sums")
        return *grads, None, None, None
