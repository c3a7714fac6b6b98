"""Latent attention of one new token per sequence, over the pages of the cache as they lie (Triton).

All heads of a sequence attend to the same entries, each of them a latent of `rank` numbers and a rotary key: the scores
read both, the values are the latents themselves, so every entry is read once. Nothing is gathered first. A long context
is split among programs, each of which keeps a running softmax (arXiv 2205.14135) over its stretch; the parts are then
weighed by their own sums (Flash-Decoding), in float32.

Shapes: R sequences, H heads, C entry width as attended to (rank + rope), X splits, S positions.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sobre.kernels.paged import Places

HEADS = 16
"""Heads of one program: the least that a tensor core multiplies."""
POSITIONS = 32
"""Entries that a program looks at together."""
PROGRAMS = 264
"""Two for each of the 132 multiprocessors of an H100 or H200: splits are made until there are as many."""


def latent_decode(q_RHC: Tensor, cells_MC: Tensor, places: Places, rank: int, scale: float) -> Tensor:
    """The same function as `reference.latent_decode`."""
    n_rows, n_heads, width = q_RHC.shape
    head_blocks = triton.cdiv(n_heads, HEADS)
    most = triton.cdiv(places.longest, POSITIONS)
    n_splits = max(1, min(most, triton.cdiv(PROGRAMS, n_rows * head_blocks)))
    span = triton.cdiv(most, n_splits) * POSITIONS
    parts_RHXC = torch.empty(n_rows, n_heads, n_splits, rank, dtype=torch.float32, device=q_RHC.device)
    sums_RHX = torch.empty(n_rows, n_heads, n_splits, dtype=torch.float32, device=q_RHC.device)
    rank_block, rope_block = (max(16, triton.next_power_of_2(size)) for size in (rank, width - rank))
    _decode_kernel[(n_rows, head_blocks, n_splits)](
        q_RHC.contiguous(),
        cells_MC,
        places.table_RB,
        places.lengths_R,
        parts_RHXC,
        sums_RHX,
        scale,
        n_heads,
        rank,
        width - rank,
        cells_MC.stride(0),
        places.table_RB.stride(0),
        n_splits,
        span,
        BLOCK=places.block,
        HEADS=HEADS,
        POSITIONS=POSITIONS,
        RANK=rank_block,
        ROPE=rope_block,
    )
    share_RHX = sums_RHX.softmax(-1)
    return (parts_RHXC * share_RHX.unsqueeze(-1)).sum(2).to(q_RHC.dtype)


@triton.jit
def _decode_kernel(
    q_ptr,
    cells_ptr,
    table_ptr,
    lengths_ptr,
    parts_ptr,
    sums_ptr,
    scale,
    n_heads,
    rank,
    rope,
    cell_stride,
    table_stride,
    n_splits,
    span,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    POSITIONS: tl.constexpr,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
):
    """One stretch of `span` positions of one sequence, for HEADS heads: its softmax-weighted latents and log-sum."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    c, r = tl.arange(0, RANK), tl.arange(0, ROPE)
    is_head, is_c, is_r = head < n_heads, c < rank, r < rope
    q_row = q_ptr + (row * n_heads + head)[:, None] * (rank + rope)
    q_latent = tl.load(q_row + c, mask=is_head[:, None] & is_c, other=0.0)
    q_rope = tl.load(q_row + rank + r, mask=is_head[:, None] & is_r, other=0.0)
    length = tl.load(lengths_ptr + row)
    largest = tl.full((HEADS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((HEADS,), dtype=tl.float32)
    out = tl.zeros((HEADS, RANK), dtype=tl.float32)
    for begin in range(split * span, tl.minimum((split + 1) * span, length), POSITIONS):
        position = begin + tl.arange(0, POSITIONS)
        is_seen = position < length
        block = tl.load(table_ptr + row * table_stride + position // BLOCK, mask=is_seen, other=0)
        cell = cells_ptr + (block * BLOCK + position % BLOCK)[:, None] * cell_stride
        latent = tl.load(cell + c, mask=is_seen[:, None] & is_c, other=0.0).to(q_latent.dtype)
        key = tl.load(cell + rank + r, mask=is_seen[:, None] & is_r, other=0.0).to(q_rope.dtype)
        scores = tl.dot(q_latent, tl.trans(latent), input_precision="ieee")
        scores += tl.dot(q_rope, tl.trans(key), input_precision="ieee")
        scores = tl.where(is_seen[None, :], scores * scale, float("-inf"))
        highest = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp(scores - highest[:, None])
        kept = tl.exp(largest - highest)
        total = total * kept + tl.sum(weights, 1)
        out = out * kept[:, None] + tl.dot(weights.to(latent.dtype), latent, input_precision="ieee")
        largest = highest
    safe = tl.where(total > 0, total, 1.0)
    at = (row * n_heads + head) * n_splits + split
    tl.store(parts_ptr + at[:, None] * rank + c, out / safe[:, None], mask=is_head[:, None] & is_c)
    tl.store(sums_ptr + at, tl.where(total > 0, largest + tl.log(safe), float("-inf")), mask=is_head)
