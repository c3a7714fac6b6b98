"""Causal attention in query blocks: each block of 128 queries meets only the keys before its end.

Half the products of the full square, as batched matrix products, which on CPUs outrun the fused attention of torch:
that one needs equal query and value widths, and latent attention has unequal ones (48 and 32 in our small models).
The query heads that share a key head become extra rows, so grouped heads are never repeated in memory. Scale and mask
ride on the product (baddbmm), which saves two passes over the scores. Scores are rounded to the working dtype, the
softmax runs in float32 inside (at::softmax), as in the usual eager model.

Probabilities of the forward pass are kept up to `SAVE_BYTES` and computed again beyond.

Shapes: R sequences, T positions, H query heads, G key/value heads, J = H // G query heads per key head, Z = R * G,
K query/key width, W value width, X rows of queries (T * J), U rows of one block (128 * J), S keys before its end.
"""

from collections.abc import Iterator
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
    q_ZXK = q_RGTJK.reshape(n_sequences * n_groups, -1, q_RTHK.shape[-1])
    k_ZTK = k_RTGK.transpose(1, 2).reshape(n_sequences * n_groups, length, -1)
    v_ZTW = v_RTGW.transpose(1, 2).reshape(n_sequences * n_groups, length, -1)
    o_ZXW = _BlockCausal.apply(q_ZXK, k_ZTK, v_ZTW, scale)
    o_RGTJW = o_ZXW.view(n_sequences, n_groups, length, n_heads // n_groups, -1)
    return o_RGTJW.transpose(1, 2).reshape(n_sequences, length, n_heads, -1)


def _blocks(length: int, rows: int) -> Iterator[tuple[slice, int, int]]:
    """Rows of each query block, how many positions it has, and where its keys end; the longest first."""
    for begin in reversed(range(0, length, BLOCK)):
        end = min(begin + BLOCK, length)
        yield slice(begin * rows, end * rows), end - begin, end


def _mask(like: Tensor, length: int, rows: int) -> Tensor:
    """mask_US of a block of queries whose keys end at `length`; shorter blocks are its lower right corners."""
    size = min(BLOCK, length)
    mask_TS = like.new_zeros(size, length)
    mask_TS[:, length - size :] = like.new_full((size, size), -torch.inf).triu_(1)
    return mask_TS.repeat_interleave(rows, 0)


def _probabilities(q_ZUK: Tensor, k_ZSK: Tensor, mask_US: Tensor, scale: float) -> Tensor:
    """probs_ZUS of one block."""
    corner_US = mask_US[-q_ZUK.shape[1] :, -k_ZSK.shape[1] :]
    return torch.softmax(torch.baddbmm(corner_US, q_ZUK, k_ZSK.mT, alpha=scale), -1)


class _BlockCausal(torch.autograd.Function):
    """Attention of queries whose J heads per key head are interleaved within each position."""

    @staticmethod
    def forward(ctx: Any, q_ZXK: Tensor, k_ZTK: Tensor, v_ZTW: Tensor, scale: float) -> Tensor:
        length, rows = k_ZTK.shape[1], q_ZXK.shape[1] // k_ZTK.shape[1]
        size_bytes = q_ZXK.shape[0] * q_ZXK.shape[1] * (length + BLOCK) // 2 * q_ZXK.element_size()
        keep = any(ctx.needs_input_grad) and size_bytes <= SAVE_BYTES
        mask_US, o_ZXW = _mask(q_ZXK, length, rows), q_ZXK.new_empty(*q_ZXK.shape[:2], v_ZTW.shape[2])
        kept = []
        for block, _, end in _blocks(length, rows):
            probs_ZUS = _probabilities(q_ZXK[:, block], k_ZTK[:, :end], mask_US, scale)
            torch.bmm(probs_ZUS, v_ZTW[:, :end], out=o_ZXW[:, block])
            if keep:
                kept.append(probs_ZUS)
        ctx.save_for_backward(q_ZXK, k_ZTK, v_ZTW, *kept)
        ctx.scale = scale
        return o_ZXW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do_ZXW: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_ZXK, k_ZTK, v_ZTW, *kept = ctx.saved_tensors
        length, rows, scale = k_ZTK.shape[1], q_ZXK.shape[1] // k_ZTK.shape[1], ctx.scale
        mask_US = _mask(q_ZXK, length, rows)
        dq_ZXK, dk_ZTK, dv_ZTW = torch.empty_like(q_ZXK), torch.empty_like(k_ZTK), torch.empty_like(v_ZTW)
        for index, (block, _, end) in enumerate(_blocks(length, rows)):
            keys_ZSK, values_ZSW, q_ZUK, do_ZUW = k_ZTK[:, :end], v_ZTW[:, :end], q_ZXK[:, block], do_ZXW[:, block]
            probs_ZUS = kept[index] if kept else _probabilities(q_ZUK, keys_ZSK, mask_US, scale)
            dprobs_ZUS = torch.bmm(do_ZUW, values_ZSW.mT)
            dscores_ZUS = torch._softmax_backward_data(dprobs_ZUS, probs_ZUS, -1, probs_ZUS.dtype)
            torch.baddbmm(q_ZUK, dscores_ZUS, keys_ZSK, beta=0, alpha=scale, out=dq_ZXK[:, block])
            first = 0 if end == length else 1  # the longest block comes first and fills all of dk and dv
            dv_ZTW[:, :end].baddbmm_(probs_ZUS.mT, do_ZUW, beta=first)
            dk_ZTK[:, :end].baddbmm_(dscores_ZUS.mT, q_ZUK, beta=first, alpha=scale)
        return dq_ZXK, dk_ZTK, dv_ZTW, None
