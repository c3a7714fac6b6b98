"""Context parallelism: a process has pieces of every sequence, and gets the keys of all of it.

A sequence is cut into 2 C pieces of like length. Process c takes the c-th from the front and the c-th from the back, so
all have about as many pairs of a query and a key (Llama 3, arXiv 2407.21783, 3.3.2). Keys and values meet in one
all-gather for each layer, their gradients in one reduce-scatter; latent attention sends the latents alone. torch's
`context_parallel` is for sequences of one length that 2 C divides, and for torch's own attention.

Shapes: N tokens of this process, M tokens of all, X any numbers of a token, C processes, P padded rows of a process.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from sobre.parallel.tensor import shared, summed
from sobre.runtime.device import carried


class Piece(NamedTuple):
    """Tokens `start` to `start + length` of a sequence."""

    sequence: int
    start: int
    length: int


def pieces_of(lengths: Sequence[int], index: int, count: int) -> list[Piece]:
    """What process `index` of `count` has of sequences of these lengths; none of a sequence that is too short."""
    found = []
    for sequence, length in enumerate(lengths):
        for part in (index, 2 * count - 1 - index):
            begin, end = (length * cut // (2 * count) for cut in (part, part + 1))
            if end > begin:
                found.append(Piece(sequence, begin, end - begin))
    return found


def rows_of(lengths: Sequence[int], pieces: Sequence[Piece]) -> Tensor:
    """Where the tokens of the pieces lie among those of all sequences."""
    firsts = list(accumulate(lengths, initial=0))
    spans = [(firsts[sequence] + start, length) for sequence, start, length in pieces]
    return torch.cat([torch.arange(first, first + length) for first, length in spans] or [torch.empty(0).long()])


class Divided:
    """Sequences of which each process of a group has its pieces (models/step.py, `Pieces`)."""

    def __init__(self, lengths: Sequence[int], group: dist.ProcessGroup) -> None:
        self.lengths, self.group = tuple(lengths), group
        count = dist.get_world_size(group)
        self.by_process = [pieces_of(self.lengths, index, count) for index in range(count)]
        self.mine = self.by_process[dist.get_rank(group)]
        self.sequences = tuple(piece.sequence for piece in self.mine)
        self.most = max(sum(piece.length for piece in pieces) for pieces in self.by_process)

    def whole(self, x_NX: Tensor) -> Tensor:
        """x of all tokens, in the order of the sequences; its gradient is summed over the processes."""
        return cast(Tensor, _Whole.apply(x_NX, carried(self.place_M, x_NX.device), self.most, self.group))

    def summed(self, x: Tensor) -> Tensor:
        """The sum over the processes, without a gradient."""
        total = x.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total

    def added(self, x: Tensor) -> Tensor:
        """The sum over the processes; its gradient is summed over them, too."""
        return shared(summed(x, self.group), self.group)

    @cached_property
    def place_M(self) -> Tensor:
        """Of each token: its row where the processes' tokens lie one after the other, each padded to `most`."""
        place_M = torch.empty(sum(self.lengths), dtype=torch.long)
        for index, pieces in enumerate(self.by_process):
            rows = rows_of(self.lengths, pieces)
            place_M[rows] = index * self.most + torch.arange(len(rows))
        return place_M


class _Whole(torch.autograd.Function):
    """The all-gather, whose gradient is the reduce-scatter.

    That of torch.distributed.nn is deprecated and goes back by an all-to-all and a sum where the backend is not NCCL;
    its successor is in a private module (_functional_collectives).
    """

    @staticmethod
    def forward(ctx: Any, x_NX: Tensor, place_M: Tensor, most: int, group: dist.ProcessGroup) -> Tensor:
        ctx.save_for_backward(place_M)
        ctx.n_tokens, ctx.most, ctx.group = len(x_NX), most, group
        x_PX = x_NX.new_zeros(most, *x_NX.shape[1:])
        x_PX[: len(x_NX)] = x_NX
        all_CPX = x_NX.new_empty(dist.get_world_size(group), *x_PX.shape)
        dist.all_gather(list(all_CPX), x_PX, group=group)
        return all_CPX.flatten(0, 1).index_select(0, place_M)

    @staticmethod
    def backward(ctx: Any, gradient_MX: Tensor) -> tuple[Tensor, None, None, None]:
        (place_M,) = ctx.saved_tensors
        all_CPX = gradient_MX.new_zeros(dist.get_world_size(ctx.group), ctx.most, *gradient_MX.shape[1:])
        all_CPX.flatten(0, 1).index_copy_(0, place_M, gradient_MX)
        mine_PX = torch.empty_like(all_CPX[0])
        dist.reduce_scatter(mine_PX, list(all_CPX), group=ctx.group)
        return mine_PX[: ctx.n_tokens], None, None, None
