"""Muon over divided matrices: every process gets a few whole ones, turns them, and sends the parts back.

A process holds a box of every matrix: some rows (FSDP's shards, or heads), some columns (the input of what sums over
heads), or both; Newton-Schulz needs whole matrices. Those of one shape are dealt out over the processes that hold a
copy between them, so each is turned once, with one all-to-all there and one back: the boxes travel twice, and no
process ever holds more than its share of the matrices.

Shapes: Z matrices of a batch, U x O the box of this process, K matrices of this process, I x J whole ones.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Box(NamedTuple):
    """Rows and columns of a matrix."""

    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def turn_whole(
    box_ZUO: Tensor, boxes: Sequence[Box], turn: Callable[[Tensor], Tensor], holders: dist.ProcessGroup
) -> Tensor:
    """`turn` of the whole matrices, of which number r of `holders` has `boxes[r]`: the box of this process."""
    n_holders, rank = dist.get_world_size(holders), dist.get_rank(holders)
    n_matrices, n_rows, n_columns = box_ZUO.shape
    owned = [n_matrices * (r + 1) // n_holders - n_matrices * r // n_holders for r in range(n_holders)]
    there = [count * n_rows * n_columns for count in owned]
    shapes = [(owned[rank], *box.shape) for box in boxes]
    back = [count * rows * columns for count, rows, columns in shapes]
    pieces = _exchange(box_ZUO.flatten(), there, back, holders).split(back)
    whole_KIJ = box_ZUO.new_empty(owned[rank], max(b.rows.stop for b in boxes), max(b.columns.stop for b in boxes))
    for piece, shape, box in zip(pieces, shapes, boxes, strict=True):
        whole_KIJ[:, *box] = piece.view(shape)
    if owned[rank]:
        whole_KIJ = turn(whole_KIJ)
    cut = torch.cat([whole_KIJ[:, *box].flatten() for box in boxes])
    return _exchange(cut, back, there, holders).view(n_matrices, n_rows, n_columns)


def _exchange(sent: Tensor, sizes_out: list[int], sizes_in: list[int], group: dist.ProcessGroup) -> Tensor:
    received = sent.new_empty(sum(sizes_in))
    dist.all_to_all_single(received, sent.contiguous(), sizes_in, sizes_out, group=group)
    return received
