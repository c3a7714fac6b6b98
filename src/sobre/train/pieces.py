"""A batch in pieces: each process of a context has some tokens of every sequence (parallel/context.py).

Targets are found before the cut, those of MTP too, so no token asks for its neighbour in another process. Where a
process would have nothing, a filler sequence gives two tokens to each. What a loss reads of a token goes where it goes.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from sobre.models.step import StepInput
from sobre.parallel.context import Divided, rows_of
from sobre.parallel.division import Division
from sobre.train.batch import Batch, Learned
from sobre.train.share import share


def mine(batch: Batch, division: Division | None) -> Batch:
    """What this process learns of a micro-batch: whole sequences, or its pieces of them if there is a context."""
    if division is None:
        return batch
    found = share(batch, *division.share)
    return found if division.context is None else in_pieces(found, division.context)


def in_pieces(batch: Batch, context: dist.ProcessGroup) -> Batch:
    """This process's pieces of every sequence."""
    real, n_filler = batch.step.real, 0
    n_real, divided = real.tokens_N.numel(), Divided(real.lengths, context)
    if not all(divided.by_process):
        n_filler = 2 * dist.get_world_size(context)
        divided = Divided((*real.lengths, n_filler), context)
    rows_N = rows_of(divided.lengths, divided.mine)

    real_N = rows_N[rows_N < n_real]

    def cut(x_N: Tensor) -> Tensor:
        return torch.cat([x_N[:n_real], x_N.new_zeros(n_filler, *x_N.shape[1:])])[rows_N]

    step = StepInput(
        cut(batch.step.tokens_N),
        lengths=tuple(piece.length for piece in divided.mine),
        starts=tuple(piece.start for piece in divided.mine),
        n_filler=2 if n_filler else 0,
        pieces=divided,
    )
    found = Batch(
        step,
        cut(batch.targets_N),
        cut(batch.weights_N),
        None if batch.routes_LNA is None else cut(batch.routes_LNA.transpose(0, 1)).transpose(0, 1),
        {
            name: stream[:, real_N] if name.endswith("LNA") else cut(stream)  # the engine's routes are of real tokens
            for name, stream in batch.streams.items()
        },
    )
    second = Learned.of(cut(batch.second.targets_N), cut(batch.second.weights_N))
    found.__dict__.update(second=second)  # the cached property, which would look for it among the pieces
    return found
