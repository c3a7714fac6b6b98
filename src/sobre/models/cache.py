"""The key/value cache: a protocol, and its contiguous form.

Attention writes one entry of width C per token and layer (MLA: the latent and the rotary key; GQA: keys and values) and
reads the entries of its sequences back. How the entries lie in memory is the cache's own business, so a paged cache
takes the place of this one without a change in the model.

Shapes: L layers, R sequences, S cached positions, C entry width, N tokens.
"""

from typing import Protocol

import torch
from torch import Tensor

from sobre.models.config import ModelConfig
from sobre.models.step import StepInput


class KVCache(Protocol):
    """Where attention keeps what it must not compute again."""

    def write(self, layer: int, entries_NC: Tensor, step: StepInput) -> None:
        """Store the entries of the step's tokens at their positions."""

    def read(self, layer: int, step: StepInput) -> Tensor:
        """Return entries_RSC, S = the longest context of the step; what lies beyond a sequence's own is undefined."""


class ContiguousCache:
    """One row of `max_len` entries for each slot."""

    def __init__(self, cfg: ModelConfig, n_slots: int, max_len: int, dtype: torch.dtype, device: str = "cpu") -> None:
        self.n_slots, self.max_len = n_slots, max_len
        self._last: tuple[StepInput, Tensor] | None = None
        self.entries_LRSC = torch.zeros(
            cfg.n_layers, n_slots, max_len, cfg.attention.cache_dim, dtype=dtype, device=device
        )

    @property
    def size_bytes(self) -> int:
        return self.entries_LRSC.numel() * self.entries_LRSC.element_size()

    def write(self, layer: int, entries_NC: Tensor, step: StepInput) -> None:
        entries_NC = entries_NC.to(self.entries_LRSC.dtype)
        self.entries_LRSC[layer].flatten(0, 1).index_copy_(0, self._cells(step), entries_NC)

    def read(self, layer: int, step: StepInput) -> Tensor:
        first, count = step.slots[0], step.n_sequences
        if step.slots == tuple(range(first, first + count)):
            return self.entries_LRSC[layer, first : first + count, : step.context]  # a view: decoding reads in place
        return self.entries_LRSC[layer, list(step.slots), : step.context]

    def _cells(self, step: StepInput) -> Tensor:
        """Where each token of the step goes, the same in every layer."""
        if self._last is None or self._last[0] is not step:
            slots_R = torch.tensor(step.slots, device=step.tokens_N.device)
            rows_N = slots_R if step.max_length == 1 else slots_R[step.sequence_N]
            self._last = (step, rows_N * self.max_len + step.positions_N)
        return self._last[1]

    def copy(self, source: int, target: int, length: int) -> None:
        """Give slot `target` the first `length` entries of slot `source` (shared prompts, compaction)."""
        self.entries_LRSC[:, target, :length] = self.entries_LRSC[:, source, :length]
