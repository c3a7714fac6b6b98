"""Muon over shards: every process gets a few whole matrices, turns them, and sends the rows back.

FSDP gives each process some rows of every matrix, and Newton-Schulz needs whole ones. Matrices of one shape are dealt
out over the shards, so each is turned once, with one all-to-all there and one back: the rows travel twice, and no
process ever holds more than its share of the matrices.

Shapes: Z matrices of a batch, S shards, U rows of this shard, I all rows, O columns, K matrices of this process.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor


def turn_whole(rows_ZUO: Tensor, n_rows: int, turn: Callable[[Tensor], Tensor], shards: dist.ProcessGroup) -> Tensor:
    """`turn` of the whole matrices, whose rows lie over `shards` as torch.chunk cuts `n_rows`: this shard's rows."""
    n_shards, rank = dist.get_world_size(shards), dist.get_rank(shards)
    n_matrices, n_columns = rows_ZUO.shape[0], rows_ZUO.shape[2]
    most = -(-n_rows // n_shards)
    rows = [max(0, min(most, n_rows - shard * most)) for shard in range(n_shards)]
    owned = [n_matrices * (shard + 1) // n_shards - n_matrices * shard // n_shards for shard in range(n_shards)]
    there = [count * rows[rank] * n_columns for count in owned]
    back = [owned[rank] * count * n_columns for count in rows]
    pieces = _exchange(rows_ZUO.flatten(), there, back, shards).split(back)
    shaped = [piece.view(owned[rank], count, n_columns) for piece, count in zip(pieces, rows, strict=True)]
    turned_KIO = turn(torch.cat(shaped, 1)) if owned[rank] else rows_ZUO.new_empty(0, n_rows, n_columns)
    cut = torch.cat([piece_KUO.flatten() for piece_KUO in turned_KIO.split(rows, 1)])
    return _exchange(cut, back, there, shards).view(n_matrices, rows[rank], n_columns)


def _exchange(sent: Tensor, sizes_out: list[int], sizes_in: list[int], group: dist.ProcessGroup) -> Tensor:
    received = sent.new_empty(sum(sizes_in))
    dist.all_to_all_single(received, sent.contiguous(), sizes_in, sizes_out, group=group)
    return received
