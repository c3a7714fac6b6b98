"""Where the batches of pretraining and fine-tuning come from: loaders cut into steps and micro-batches.

A step takes `batch_tokens`; a forward pass at most `micro_tokens`. How a step is cut changes neither the order of the
data nor the gradient.

What depends on nothing but a place in an order is made one step ahead (`LoaderSource.prepare`), while the host would
wait for the device; the state is that of the batches that were given, never that of those that wait.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch

from sobre.data.chats import ChatLoader
from sobre.data.loader import LoaderState, PackedLoader
from sobre.errors import ConfigError, DataError
from sobre.train.batch import Batch, from_rows, from_samples
from sobre.train.config import StageConfig
from sobre.train.loop import Feed
from sobre.train.step import StepInfo

FILL_UNIT = 128
"""Ragged steps are filled up to a multiple of this many tokens."""


class Placed(Protocol):
    """What has a place in an order."""

    def state(self) -> LoaderState: ...
    def restore(self, state: LoaderState) -> None: ...


class LoaderSource(ABC):
    """Batches that a place in an order names, and nothing else: they can be made before they are asked for."""

    def __init__(self, loader: Placed) -> None:
        self._placed = loader
        self._waiting: list[Batch] | None = None
        """Made ahead, and not given yet."""
        self._given: LoaderState = loader.state()
        """The place after the batches that were given, while others wait."""

    @abstractmethod
    def make(self) -> list[Batch]:
        """The next step's batches; the loader goes on."""

    def feed(self, step: int) -> Feed:
        batches, self._waiting = self._waiting, None
        return Feed(self.make() if batches is None else batches)

    def prepare(self, step: int, device: torch.device) -> None:
        if self._waiting is not None:
            return
        self._given = self._placed.state()
        try:
            self._waiting = [batch.ready(device) for batch in self.make()]
        except DataError:
            self._placed.restore(self._given)  # `feed` says what is wrong, when its step comes

    def updated(self, step: int, info: StepInfo) -> Mapping[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return dict(self._placed.state() if self._waiting is None else self._given)

    def restore(self, state: Mapping[str, Any]) -> None:
        self._waiting = None
        self._placed.restore(cast(LoaderState, state))


class RowSource(LoaderSource):
    """Pretraining: packed rows, every token learned."""

    def __init__(self, loader: PackedLoader, cfg: StageConfig) -> None:
        super().__init__(loader)
        self.loader = loader
        self.n_rows = max(1, cfg.batch_tokens // loader.seq_len)
        self.micro_rows = max(1, cfg.micro_tokens // loader.seq_len)
        if cfg.batch_tokens < loader.seq_len:
            raise ConfigError(
                f"batch_tokens={cfg.batch_tokens} holds no row of seq_len={loader.seq_len}; {loader.seq_len} would fit"
            )

    def make(self) -> list[Batch]:
        rows_BT1 = torch.from_numpy(self.loader.take(self.n_rows))
        return [from_rows(micro_BT1) for micro_BT1 in rows_BT1.split(self.micro_rows)]


class SampleSource(LoaderSource):
    """Fine-tuning: whole chats, ragged, learned where the assistant speaks."""

    def __init__(self, loader: ChatLoader, cfg: StageConfig) -> None:
        super().__init__(loader)
        self.loader, self.cfg = loader, cfg

    def make(self) -> list[Batch]:
        samples = [(sample.ids, sample.mask) for sample in self.loader.take_tokens(self.cfg.batch_tokens)]
        return [from_samples(micro, fill_unit=FILL_UNIT) for micro in cut_by_tokens(samples, self.cfg.micro_tokens)]


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
