"""A training batch: one step of the model, and for each of its tokens what to learn.

Shapes: N tokens, L routing layers, A active experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sobre.models.step import StepInput
from sobre.runtime.device import carried, exact, pinned


class Learned(NamedTuple):
    """What to predict from each token, with which weight, and where the weight is not zero."""

    targets_N: Tensor
    weights_N: Tensor
    places: Tensor | None
    """Tokens with a weight; None when all have weight 1. Found on the host, so that no device is asked."""
    total: float
    """Sum of the weights."""

    @classmethod
    def of(cls, targets_N: Tensor, weights_N: Tensor) -> "Learned":
        places = None if bool((weights_N == 1).all()) else weights_N.nonzero().squeeze(1)
        return cls(targets_N, weights_N, places, float(exact(weights_N).sum(dtype=torch.float64)))

    def pick(self, x_N: Tensor) -> Tensor:
        """The rows of x that are learned from."""
        return x_N if self.places is None else x_N.index_select(0, self.places)

    def pinned(self, device: torch.device) -> "Learned":
        """The same in memory that is copied to `device` without waiting."""
        places = None if self.places is None else pinned(self.places, device)
        return Learned(pinned(self.targets_N, device), pinned(self.weights_N, device), places, self.total)

    def to(self, device: torch.device) -> "Learned":
        places = None if self.places is None else carried(self.places, device)
        return Learned(carried(self.targets_N, device), carried(self.weights_N, device), places, self.total)


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Example: the sample [bos, 7, 8, eos] with loss on 8 and eos only:
        Batch(StepInput(tensor([bos, 7, 8]), lengths=(3,)), tensor([7, 8, eos]), tensor([0., 1., 1.]))
    """

    step: StepInput
    targets_N: Tensor
    """The token that follows each token."""
    weights_N: Tensor
    """1 where the target is to be learned, 0 elsewhere (float32)."""
    routes_LNA: Tensor | None = None
    """Experts to replay, chosen by the sampler; None routes anew."""
    streams: Mapping[str, Tensor] = field(default_factory=dict)
    """Per-token numbers that a loss reads by name: advantages, log-probabilities of the sampler."""

    @property
    def n_tokens(self) -> int:
        """Real tokens, whether or not they are trained."""
        return sum(self.step.lengths) - self.step.n_filler

    @cached_property
    def first(self) -> Learned:
        """The next token."""
        return Learned.of(self.targets_N, self.weights_N)

    @cached_property
    def second(self) -> Learned:
        """The token after it (MTP)."""
        return Learned.of(*second_targets(self))

    def ready(self, device: torch.device) -> "Batch":
        """The same batch, with nothing left to be done before it goes to `device`: what is learned where is found, and
        all is in pinned memory."""
        if self.step.tokens_N.device == device:
            return self
        first, second = self.first.pinned(device), self.second.pinned(device)
        routes_LNA = None if self.routes_LNA is None else pinned(self.routes_LNA, device)
        streams = {name: pinned(stream, device) for name, stream in self.streams.items()}
        step = replace(self.step, tokens_N=pinned(self.step.tokens_N, device))
        waiting = Batch(step, first.targets_N, first.weights_N, routes_LNA, streams)
        waiting.__dict__.update(first=first, second=second)  # the cached properties
        return waiting

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device; what is learned where is found before it leaves the host."""
        if self.step.tokens_N.device == device:
            return self
        first, second = self.first.to(device), self.second.to(device)
        routes_LNA = None if self.routes_LNA is None else carried(self.routes_LNA, device)
        streams = {name: carried(stream, device) for name, stream in self.streams.items()}
        there = Batch(self.step.to(device), first.targets_N, first.weights_N, routes_LNA, streams)
        there.__dict__.update(first=first, second=second)  # the cached properties
        return there


def from_rows(rows_BT1: Tensor) -> Batch:
    """Rows of T + 1 consecutive tokens, every target learned."""
    inputs_BT, targets_BT = rows_BT1[:, :-1], rows_BT1[:, 1:]
    step = StepInput(inputs_BT.flatten(), lengths=(inputs_BT.shape[1],) * inputs_BT.shape[0])
    return Batch(step, targets_BT.flatten(), torch.ones(targets_BT.numel()))


def from_samples(samples: Sequence[tuple[Sequence[int], Sequence[int]]], *, fill_unit: int = 1) -> Batch:
    """Samples of (token ids, mask), ragged; the loss is where the mask of the predicted token is 1.

    The step is filled up to a multiple of `fill_unit` tokens.
    """
    lengths = tuple(len(ids) - 1 for ids, _ in samples)
    filler = -sum(lengths) % fill_unit

    def joined(parts: list[Any], dtype: type[np.generic]) -> Tensor:
        """As one array: number by number, a step of 1,024 tokens would wait for a tenth of its time."""
        return torch.from_numpy(np.concatenate([*(np.asarray(part, dtype) for part in parts), np.zeros(filler, dtype)]))

    step = StepInput(
        joined([ids[:-1] for ids, _ in samples], np.int64),
        lengths=(*lengths, filler) if filler else lengths,
        n_filler=filler,
    )
    targets_N = joined([ids[1:] for ids, _ in samples], np.int64)
    return Batch(step, targets_N, joined([mask[1:] for _, mask in samples], np.float32))


def second_targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """Targets two tokens ahead and their weights: zero at the end of each sequence, where there is none.

    Depth 1 of MTP predicts t_{i+2} from h_i and t_{i+1} (DeepSeek-V3, eq. 21-24).
    """
    shifted_N, weights_N = batch.targets_N.roll(-1), batch.weights_N.roll(-1)
    ends_R = batch.step.lengths_R.cumsum(0) - 1
    return shifted_N, weights_N.index_fill(0, ends_R, 0.0)
