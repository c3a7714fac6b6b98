"""Causal attention in query blocks: each block of 128 queries meets only the keys before its end.

Half the products of the full square, as batched matrix products, which on CPUs outrun the fused attention of torch:
that one needs equal query and value widths, and latent attention has unequal ones (48 and 32 in our small models).
The query heads that share a key head become extra rows, so grouped heads are never repeated in memory.
Scores are rounded to the working dtype, the softmax runs in float32 inside (at::softmax), as in the usual eager model.

Probabilities of the forward pass are kept up to `SAVE_BYTES` and computed again beyond.

Shapes: R sequences, T positions, H query heads, G key/value heads, J = H // G query heads per key head, Z = R * G,
K query/key width, W value width, U rows of one block (128 * J), S keys before the end of the block.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 128
SAVE_BYTES = 1 << 28


def causal_attention(q_RTHK: Tensor, k_RTGK: Tensor, v_RTGW: Tensor, scale: float) -> Tensor:
    """The same function as `reference.causal_attention`."""
    n_sequences, length, n_heads, _ = q_RTHK.shape
    n_groups = k_RTGK.shape[2]
    q_RGTJK = q_RTHK.unflatten(2, (n_groups, n_heads // n_groups)).transpose(1, 2)
    q_ZXK = (q_RGTJK * scale).reshape(n_sequences * n_groups, -1, q_RTHK.shape[-1])
    k_ZTK = k_RTGK.transpose(1, 2).reshape(n_sequences * n_groups, length, -1)
    v_ZTW = v_RTGW.transpose(1, 2).reshape(n_sequences * n_groups, length, -1)
    o_ZXW = _BlockCausal.apply(q_ZXK, k_ZTK, v_ZTW)
    o_RGTJW = o_ZXW.view(n_sequences, n_groups, length, n_heads // n_groups, -1)
    return o_RGTJW.transpose(1, 2).reshape(n_sequences, length, n_heads, -1)


def _probabilities(q_ZXK: Tensor, k_ZTK: Tensor, begin: int, end: int) -> Tensor:
    """probs_ZUS of the queries at positions begin..end."""
    rows = q_ZXK.shape[1] // k_ZTK.shape[1]
    scores_ZUS = torch.bmm(q_ZXK[:, begin * rows : end * rows], k_ZTK[:, :end].transpose(1, 2))
    if end - begin > 1:
        later_TT = scores_ZUS.new_full((end - begin, end - begin), -torch.inf).triu_(1)
        scores_ZUS[:, :, begin:].add_(later_TT.repeat_interleave(rows, 0))  # half the time of masked_fill_
    return torch.softmax(scores_ZUS, -1)


class _BlockCausal(torch.autograd.Function):
    """Attention of queries with `rows` heads interleaved per position; the scale is already in the queries."""

    @staticmethod
    def forward(ctx: Any, q_ZXK: Tensor, k_ZTK: Tensor, v_ZTW: Tensor) -> Tensor:
        length, rows = k_ZTK.shape[1], q_ZXK.shape[1] // k_ZTK.shape[1]
        save = q_ZXK.shape[0] * q_ZXK.shape[1] * (length + BLOCK) // 2 * q_ZXK.element_size() <= SAVE_BYTES
        o_ZXW = q_ZXK.new_empty(*q_ZXK.shape[:2], v_ZTW.shape[2])
        probs = []
        for begin in range(0, length, BLOCK):
            end = min(begin + BLOCK, length)
            probs_ZUS = _probabilities(q_ZXK, k_ZTK, begin, end)
            torch.bmm(probs_ZUS, v_ZTW[:, :end], out=o_ZXW[:, begin * rows : end * rows])
            if save:
                probs.append(probs_ZUS)
        ctx.save_for_backward(q_ZXK, k_ZTK, v_ZTW, *probs)
        return o_ZXW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do_ZXW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_ZXK, k_ZTK, v_ZTW, *probs = ctx.saved_tensors
        length, rows = k_ZTK.shape[1], q_ZXK.shape[1] // k_ZTK.shape[1]
        dq_ZXK, dk_ZTK, dv_ZTW = torch.empty_like(q_ZXK), torch.zeros_like(k_ZTK), torch.zeros_like(v_ZTW)
        for index, begin in enumerate(range(0, length, BLOCK)):
            end = min(begin + BLOCK, length)
            block = slice(begin * rows, end * rows)
            probs_ZUS = probs[index] if probs else _probabilities(q_ZXK, k_ZTK, begin, end)
            dv_ZTW[:, :end].baddbmm_(probs_ZUS.transpose(1, 2), do_ZXW[:, block])
            dprobs_ZUS = torch.bmm(do_ZXW[:, block], v_ZTW[:, :end].transpose(1, 2))
            dscores_ZUS = torch._softmax_backward_data(dprobs_ZUS, probs_ZUS, -1, probs_ZUS.dtype)
            torch.bmm(dscores_ZUS, k_ZTK[:, :end], out=dq_ZXK[:, block])
            dk_ZTK[:, :end].baddbmm_(dscores_ZUS.transpose(1, 2), q_ZXK[:, block])
        return dq_ZXK, dk_ZTK, dv_ZTW
