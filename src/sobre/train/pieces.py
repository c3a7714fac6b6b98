"""A batch in pieces: each process of a context has some tokens of every sequence (parallel/context.py).

Targets are found before the cut, those of MTP too, so no token asks for its neighbour in another process. Where a
process would have nothing, a filler sequence gives two tokens to each.
"""

import torch.distributed as dist
import torch.nn.functional as F
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
    assert not batch.streams, "check_stages has refused what has more than tokens"
    real, n_filler = batch.step.real, 0
    n_real, divided = real.tokens_N.numel(), Divided(real.lengths, context)
    if not all(divided.by_process):
        n_filler = 2 * dist.get_world_size(context)
        divided = Divided((*real.lengths, n_filler), context)
    rows_N = rows_of(divided.lengths, divided.mine)

    def cut(x_N: Tensor) -> Tensor:
        return F.pad(x_N[:n_real], (0, n_filler))[rows_N]

    step = StepInput(
        cut(batch.step.tokens_N),
        lengths=tuple(piece.length for piece in divided.mine),
        starts=tuple(piece.start for piece in divided.mine),
        n_filler=2 if n_filler else 0,
        pieces=divided,
    )
    found = Batch(step, cut(batch.targets_N), cut(batch.weights_N))
    second = Learned.of(cut(batch.second.targets_N), cut(batch.second.weights_N))
    found.__dict__.update(second=second)  # the cached property, which would look for it among the pieces
    return found
