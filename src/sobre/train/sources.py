"""Where the batches of pretraining and fine-tuning come from: loaders cut into steps and micro-batches.

A step takes `batch_tokens`; a forward pass at most `micro_tokens`. How a step is cut changes neither the order of the
data nor the gradient.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from sobre.data.chats import ChatLoader
from sobre.data.loader import LoaderState, PackedLoader
from sobre.errors import ConfigError
from sobre.train.batch import from_rows, from_samples
from sobre.train.config import StageConfig
from sobre.train.loop import Feed
from sobre.train.step import StepInfo

FILL_UNIT = 128
"""Ragged steps are filled up to a multiple of this many tokens."""


class RowSource:
    """Pretraining: packed rows, every token learned."""

    def __init__(self, loader: PackedLoader, cfg: StageConfig) -> None:
        self.loader = loader
        self.n_rows = max(1, cfg.batch_tokens // loader.seq_len)
        self.micro_rows = max(1, cfg.micro_tokens // loader.seq_len)
        if cfg.batch_tokens < loader.seq_len:
            raise ConfigError(
                f"batch_tokens={cfg.batch_tokens} holds no row of seq_len={loader.seq_len}; {loader.seq_len} would fit"
            )

    def feed(self, step: int) -> Feed:
        rows_BT1 = torch.from_numpy(self.loader.take(self.n_rows))
        return Feed([from_rows(micro_BT1) for micro_BT1 in rows_BT1.split(self.micro_rows)])

    def updated(self, step: int, info: StepInfo) -> Mapping[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return dict(self.loader.state())

    def restore(self, state: Mapping[str, Any]) -> None:
        self.loader.restore(cast(LoaderState, state))


class SampleSource:
    """Fine-tuning: whole chats, ragged, learned where the assistant speaks."""

    def __init__(self, loader: ChatLoader, cfg: StageConfig) -> None:
        self.loader, self.cfg = loader, cfg

    def feed(self, step: int) -> Feed:
        samples = [(sample.ids, sample.mask) for sample in self.loader.take_tokens(self.cfg.batch_tokens)]
        return Feed(
            [from_samples(micro, fill_unit=FILL_UNIT) for micro in cut_by_tokens(samples, self.cfg.micro_tokens)]
        )

    def updated(self, step: int, info: StepInfo) -> Mapping[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return dict(self.loader.state())

    def restore(self, state: Mapping[str, Any]) -> None:
        self.loader.restore(cast(LoaderState, state))


def cut_by_tokens(samples: Sequence[tuple[Any, Any]], max_tokens: int) -> list[list[tuple[Any, Any]]]:
    """Consecutive samples in micro-batches of at most `max_tokens`; a longer sample is a micro-batch of its own."""
    cuts: list[list[tuple[Any, Any]]] = []
    filled = max_tokens + 1
    for sample in samples:
        if filled + len(sample[0]) > max_tokens:
            cuts.append([])
            filled = 0
        cuts[-1].append(sample)
        filled += len(sample[0])
    return cuts
