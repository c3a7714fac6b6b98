"""Causal attention of ragged sequences: like lengths in one batch, queries in blocks of 128 that meet the keys so far.

Batched matrix products over half the square, which on CPUs outrun the fused attention of torch: that one needs equal
query and value widths, and latent attention has unequal ones (48 and 32 in our small models). Sequences are sorted into
groups, each padded to its longest: few calls where the lengths are near, little padding where they are not. Tokens go
straight to their place in their group, head by head, and straight back. Scale and mask ride on the product (baddbmm),
which saves two passes over the scores. Scores are rounded to the working dtype, the softmax runs in float32 inside
(at::softmax), as in the usual eager model.

Probabilities of the forward pass are kept up to `SAVE_BYTES` and computed again beyond.

Shapes: N tokens, H query heads, G key/value heads, J = H // G query heads per key head, K query/key width, W value
width. Of one group: R sequences, T positions, Z = R * G, X rows of queries (T * J), U rows of one block (128 * J), S
keys before its end. P and Y are the query and the key rows of all groups, padding included.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sobre.runtime.device import carried

BLOCK = 128
LENGTH_UNIT = 16
"""Lengths are padded to multiples of this, so that equal shapes come back: a new one costs oneDNN its preparation."""
CALL_SCORES = 20_000
"""Scores that cost as much time as the calls that a group needs."""
SAVE_BYTES = 1 << 28


class Span(NamedTuple):
    """A group: R sequences of T positions, and where its rows lie among the query rows P and the key rows Y."""

    n_sequences: int
    length: int
    queries: slice
    keys: slice


class Layout(NamedTuple):
    """Where every token of every head goes."""

    spans: tuple[Span, ...]
    query_P: Tensor
    """Of each query row: its row in x_NHK seen as (N * H, K); padding repeats a sequence's last token."""
    key_Y: Tensor
    """Of each key row: its row in (N * G, K)."""
    place_NH: Tensor
    """Of each token and query head: its row in P."""
    place_NG: Tensor
    padding_P: Tensor
    """Query rows that are padding."""


def causal_attention(q_NHK: Tensor, k_NGK: Tensor, v_NGW: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """The same function as `reference.causal_attention`."""
    return _BlockCausal.apply(q_NHK, k_NGK, v_NGW, tuple(lengths), scale)


def group_lengths(lengths: Sequence[int], n_heads: int) -> list[list[int]]:
    """Sequences of each group, by index: the cut of the sorted lengths with the least scores and calls."""
    padded = [-(-length // LENGTH_UNIT) * LENGTH_UNIT for length in lengths]
    counts = sorted(Counter(padded).items())
    best: list[tuple[float, int]] = [(0.0, 0)]  # of the first i distinct lengths: cost, and where the last group begins
    for end in range(1, len(counts) + 1):
        costs, n_sequences = [], 0
        for begin in reversed(range(end)):
            n_sequences += counts[begin][1]
            scores = n_heads * n_sequences * _scores(counts[end - 1][0])
            costs.append((best[begin][0] + CALL_SCORES + scores, begin))
        best.append(min(costs))
    cuts, end = list[int](), len(counts)
    while end:
        cuts.append(counts[end - 1][0])
        end = best[end][1]
    order = sorted(range(len(lengths)), key=lambda index: padded[index])
    groups: list[list[int]] = [[] for _ in cuts]
    for index in order:
        groups[next(i for i, cut in enumerate(reversed(cuts)) if padded[index] <= cut)].append(index)
    return groups


def _scores(length: int) -> int:
    """Scores of one head of one sequence: blocks of queries times the keys before their ends."""
    return length * (length + BLOCK) // 2 if length > BLOCK else length * length


@lru_cache(maxsize=8)
def _layout(lengths: tuple[int, ...], n_heads: int, n_groups: int, device: torch.device) -> Layout:
    """The same for all layers of a step, and so made once."""
    firsts = [0]
    for length in lengths:
        firsts.append(firsts[-1] + length)
    spans, tokens, paddings, n_rows = list[Span](), list[Tensor](), list[Tensor](), 0
    for members in group_lengths(lengths, n_heads):
        lengths_R1 = torch.tensor([lengths[index] for index in members]).unsqueeze(1)
        firsts_R1 = torch.tensor([firsts[index] for index in members]).unsqueeze(1)
        longest = int(lengths_R1.max())
        if int(lengths_R1.min()) < longest:
            longest = -(-longest // LENGTH_UNIT) * LENGTH_UNIT
        offset_T = torch.arange(longest)
        tokens.append((firsts_R1 + torch.minimum(offset_T, lengths_R1 - 1)).unsqueeze(1))  # token_R1T
        paddings.append((offset_T >= lengths_R1).unsqueeze(1))
        end = n_rows + len(members) * longest
        queries, keys = slice(n_rows * n_heads, end * n_heads), slice(n_rows * n_groups, end * n_groups)
        spans.append(Span(len(members), longest, queries, keys))
        n_rows = end
    heads_GJ = torch.arange(n_heads).view(n_groups, -1)
    rows = [(token_R1T[..., None] * n_heads + heads_GJ[:, None]).flatten() for token_R1T in tokens]  # (R, G, T, J)
    key_rows = [(token_R1T * n_groups + torch.arange(n_groups)[:, None]).flatten() for token_R1T in tokens]
    is_padding = [(p_R1T[..., None] & (heads_GJ[:, None] >= 0)).flatten() for p_R1T in paddings]
    key_padding = [(p_R1T & (torch.arange(n_groups)[:, None] >= 0)).flatten() for p_R1T in paddings]
    query_P, key_Y = torch.cat(rows), torch.cat(key_rows)
    padding_P, padding_Y = torch.cat(is_padding), torch.cat(key_padding)
    return Layout(
        tuple(spans),
        *(
            carried(rows, device)
            for rows in (
                query_P,
                key_Y,
                _places(query_P, padding_P),
                _places(key_Y, padding_Y),
                padding_P.nonzero().squeeze(1),
            )
        ),
    )


def _places(source_P: Tensor, padding_P: Tensor) -> Tensor:
    """The inverse of the rows that are no padding."""
    real = (~padding_P).nonzero().squeeze(1)
    return torch.empty_like(real).index_copy_(0, source_P[real], real)


def _blocks(length: int, rows: int) -> Iterator[tuple[slice, int]]:
    """Rows of each query block, and where its keys end; the longest first."""
    for begin in reversed(range(0, length, BLOCK)):
        end = min(begin + BLOCK, length)
        yield slice(begin * rows, end * rows), end


@lru_cache(maxsize=64)
def _mask(length: int, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """mask_US of a block of queries whose keys end at `length`; shorter blocks are its lower right corners."""
    size = min(BLOCK, length)
    mask_TS = torch.zeros(size, length, dtype=dtype, device=device)
    mask_TS[:, length - size :] = torch.full((size, size), -torch.inf, dtype=dtype, device=device).triu_(1)
    return mask_TS.repeat_interleave(rows, 0)


def _probabilities(q_ZUK: Tensor, k_ZSK: Tensor, mask_US: Tensor, scale: float) -> Tensor:
    """probs_ZUS of one block."""
    corner_US = mask_US[-q_ZUK.shape[1] :, -k_ZSK.shape[1] :]
    return torch.softmax(torch.baddbmm(corner_US, q_ZUK, k_ZSK.mT, alpha=scale), -1)


def _group(x: Tensor, span: Span, rows: slice, n_groups: int) -> Tensor:
    """The rows of one group as a batch: (Z, X or T, width)."""
    return x[rows].view(span.n_sequences * n_groups, -1, x.shape[1])


class _BlockCausal(torch.autograd.Function):
    """Attention of queries whose J heads per key head are interleaved within each position."""

    @staticmethod
    def forward(
        ctx: Any, q_NHK: Tensor, k_NGK: Tensor, v_NGW: Tensor, lengths: tuple[int, ...], scale: float
    ) -> Tensor:
        n_heads, n_groups = q_NHK.shape[1], k_NGK.shape[1]
        layout, rows = _layout(lengths, n_heads, n_groups, q_NHK.device), n_heads // n_groups
        q_PK = q_NHK.flatten(0, 1).index_select(0, layout.query_P)
        k_YK = k_NGK.flatten(0, 1).index_select(0, layout.key_Y)
        v_YW = v_NGW.flatten(0, 1).index_select(0, layout.key_Y)
        o_PW = q_PK.new_empty(q_PK.shape[0], v_YW.shape[1])
        size = sum(n_heads * span.n_sequences * _scores(span.length) for span in layout.spans) * q_PK.element_size()
        keep, kept = any(ctx.needs_input_grad) and size <= SAVE_BYTES, list[Tensor]()
        for span in layout.spans:
            q_ZXK, o_ZXW = (_group(x, span, span.queries, n_groups) for x in (q_PK, o_PW))
            k_ZTK, v_ZTW = (_group(x, span, span.keys, n_groups) for x in (k_YK, v_YW))
            mask_US = _mask(span.length, rows, q_PK.dtype, q_PK.device)
            for block, end in _blocks(span.length, rows):
                probs_ZUS = _probabilities(q_ZXK[:, block], k_ZTK[:, :end], mask_US, scale)
                torch.bmm(probs_ZUS, v_ZTW[:, :end], out=o_ZXW[:, block])
                if keep:
                    kept.append(probs_ZUS)
        ctx.save_for_backward(q_PK, k_YK, v_YW, *kept)
        ctx.layout, ctx.n_groups, ctx.rows, ctx.scale = layout, n_groups, rows, scale
        return o_PW.index_select(0, layout.place_NH).unflatten(0, (-1, n_heads))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do_NHW: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q_PK, k_YK, v_YW, *kept = ctx.saved_tensors
        layout, n_groups, rows, scale = ctx.layout, ctx.n_groups, ctx.rows, ctx.scale
        do_PW = do_NHW.flatten(0, 1).index_select(0, layout.query_P).index_fill_(0, layout.padding_P, 0.0)
        dq_PK, dk_YK, dv_YW = torch.empty_like(q_PK), torch.empty_like(k_YK), torch.empty_like(v_YW)
        probs = iter(kept)
        for span in layout.spans:
            q_ZXK, do_ZXW, dq_ZXK = (_group(x, span, span.queries, n_groups) for x in (q_PK, do_PW, dq_PK))
            k_ZTK, v_ZTW, dk_ZTK, dv_ZTW = (_group(x, span, span.keys, n_groups) for x in (k_YK, v_YW, dk_YK, dv_YW))
            mask_US = _mask(span.length, rows, q_PK.dtype, q_PK.device)
            for block, end in _blocks(span.length, rows):
                keys_ZSK, values_ZSW, q_ZUK, do_ZUW = k_ZTK[:, :end], v_ZTW[:, :end], q_ZXK[:, block], do_ZXW[:, block]
                probs_ZUS = next(probs) if kept else _probabilities(q_ZUK, keys_ZSK, mask_US, scale)
                dprobs_ZUS = torch.bmm(do_ZUW, values_ZSW.mT)
                dscores_ZUS = torch._softmax_backward_data(dprobs_ZUS, probs_ZUS, -1, probs_ZUS.dtype)
                torch.baddbmm(q_ZUK, dscores_ZUS, keys_ZSK, beta=0, alpha=scale, out=dq_ZXK[:, block])
                first = 0 if end == span.length else 1  # the longest block comes first and fills all of dk and dv
                dv_ZTW[:, :end].baddbmm_(probs_ZUS.mT, do_ZUW, beta=first)
                dk_ZTK[:, :end].baddbmm_(dscores_ZUS.mT, q_ZUK, beta=first, alpha=scale)
        dq_NHK = dq_PK.index_select(0, layout.place_NH).unflatten(0, (-1, rows * n_groups))
        dk_NGK, dv_NGW = (x.index_select(0, layout.place_NG).unflatten(0, (-1, n_groups)) for x in (dk_YK, dv_YW))
        return dq_NHK, dk_NGK, dv_NGW, None, None
