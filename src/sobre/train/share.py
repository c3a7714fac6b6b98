"""One process's share of a micro-batch: whole sequences, so that no loss needs to know how many processes there are.

The micro-batch is the same whatever the number of processes, and so are the order of the data, the global counts and
the number of forward passes. A process for which no sequence is left gets one filler token: it takes part in every
exchange and counts nowhere.
"""

from itertools import accumulate
from math import ceil

import torch

from sobre.models.step import StepInput
from sobre.train.batch import Batch


def share(batch: Batch, index: int, count: int) -> Batch:
    """Part `index` of `count`: consecutive sequences, of about as many tokens in every part."""
    if count == 1:
        return batch
    real = batch.step.real
    ends = list(accumulate(real.lengths))
    total = ends[-1]
    # a sequence belongs to the part in which its middle lies
    owners = [(2 * end - length) * count // (2 * total) for end, length in zip(ends, real.lengths, strict=True)]
    mine = [sequence for sequence, owner in enumerate(owners) if owner == index]
    if not mine:
        return idle(batch)
    begin, end = ends[mine[0]] - real.lengths[mine[0]], ends[mine[-1]]
    return Batch(
        StepInput(real.tokens_N[begin:end], tuple(real.lengths[sequence] for sequence in mine)),
        batch.targets_N[begin:end],
        batch.weights_N[begin:end],
        None if batch.routes_LNA is None else batch.routes_LNA[:, begin:end],
        {name: _cut(name, stream, begin, end, mine[0]) for name, stream in batch.streams.items()},
    )


def largest_row_share(micro_tokens: int, row: int, count: int) -> int:
    """Tokens of the largest of `count` parts of a micro-batch of rows of one length."""
    return ceil(max(1, micro_tokens // row) / count) * row


def largest_share(micro_tokens: int, longest: int, count: int) -> int:
    """Most tokens that one of `count` parts of a ragged micro-batch may have: the middles of its sequences lie in a
    count-th of it, so it sticks out by half of the longest at either end."""
    whole = max(longest, micro_tokens)
    return min(whole, ceil(whole / count) + longest)


def idle(batch: Batch) -> Batch:
    """A batch of one filler token, with the streams that `batch` has."""
    tokens_N = torch.zeros_like(batch.step.tokens_N[:1])
    return Batch(
        StepInput(tokens_N, lengths=(1,), n_filler=1),
        tokens_N,
        torch.zeros_like(batch.weights_N[:1]),
        None if batch.routes_LNA is None else batch.routes_LNA[:, :1],
        {name: _cut(name, stream, 0, 0 if name.endswith("LNA") else 1) for name, stream in batch.streams.items()},
    )


def _cut(name: str, stream: torch.Tensor, begin: int, end: int, first: int = 0) -> torch.Tensor:
    """Tokens begin..end of a stream; only the engine's routes have the layers before the tokens, and only the numbers
    of the answers begin anew (a prompt's tokens have number 0 everywhere)."""
    if name == "answer":
        return (stream[begin:end] - first).clamp(min=0)
    return stream[:, begin:end] if name.endswith("LNA") else stream[begin:end]


def filled(batch: Batch, n_tokens: int, max_len: int) -> Batch:
    """The batch with so much filler, in sequences of `max_len` at most, that it has `n_tokens`: what travels through a
    pipeline has one shape. The engine's routes are of real tokens, and stay."""
    step, missing = batch.step, n_tokens - batch.step.tokens_N.numel()
    if not missing:
        return batch
    more = [max_len] * (missing // max_len) + [missing % max_len] * bool(missing % max_len)
    return Batch(
        StepInput(_longer(step.tokens_N, missing), lengths=(*step.lengths, *more), n_filler=step.n_filler + missing),
        _longer(batch.targets_N, missing),
        _longer(batch.weights_N, missing),
        None if batch.routes_LNA is None else _longer(batch.routes_LNA, missing, dim=1),
        {name: it if name.endswith("LNA") else _longer(it, missing) for name, it in batch.streams.items()},
    )


def _longer(x: torch.Tensor, n: int, dim: int = 0) -> torch.Tensor:
    shape = list(x.shape)
    shape[dim] = n
    return torch.cat([x, x.new_zeros(shape)], dim)
