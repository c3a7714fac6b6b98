"""The key/value cache: a protocol, and its paged form.

Attention writes one entry of width C per token and layer (MLA: the latent and the rotary key; GQA: keys and values) and
reads the entries of its sequences back. How the entries lie in memory is the cache's own business. Here they lie in
blocks of `BLOCK` tokens; a table names the blocks of each sequence, so that sequences grow without moving, and several
may hold the blocks of a beginning that they share (PagedAttention, arXiv 2309.06180). Who gets which block is decided
elsewhere (engine/scheduler.py).

Shapes: L layers, R sequences, S cached positions, C entry width, N tokens, B blocks, M cells (one for
each token of each block).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sobre.kernels.paged import Places, gather
from sobre.models.config import BLOCK, ModelConfig
from sobre.models.step import StepInput
from sobre.runtime.device import carried


class KVCache(Protocol):
    """Where attention keeps what it must not compute again."""

    reads_fresh: bool
    """Whether attention reads even what a step that begins at 0 has just written: one way of computing for all."""

    def write(self, layer: int, entries_NC: Tensor, step: StepInput) -> None:
        """Store the entries of the step's tokens at their positions."""

    def read(self, layer: int, step: StepInput) -> Tensor:
        """Return entries_RSC, S = the longest context of the step; what lies beyond a sequence's own is undefined."""

    def leave(self, trail: int, x_N: Tensor, step: StepInput) -> None:
        """Store what the memory keeps of each token: classes (trail 0), or the n-th layer's values."""

    def recall(self, trail: int, step: StepInput, age: int) -> Tensor:
        """Return x_N of the token `age` places before each; undefined before a beginning."""

    def paged(self, layer: int, step: StepInput) -> tuple[Tensor, Places]:
        """cells_MC of a layer and where in them the entries of the step's sequences lie: for reading in place."""


class BlockTables:
    """Which blocks each slot holds, and where the tokens of a step lie in them: for all that is kept per token."""

    def __init__(self, n_slots: int, max_len: int, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self._table_RB = np.zeros((n_slots, -(-max_len // BLOCK)), dtype=np.int64)
        self._cells: tuple[StepInput, Tensor] | None = None
        self._places: tuple[StepInput, Places] | None = None

    def place(self, slot: int, blocks: Sequence[int]) -> None:
        """From now on the slot's tokens lie in these blocks, `BLOCK` each, in this order."""
        self._table_RB[slot, : len(blocks)] = blocks

    def cells_N(self, step: StepInput) -> Tensor:
        """Where each token of the step lies, the same in every layer."""
        if self._cells is None or self._cells[0] is not step:
            self._cells = (step, self.earlier_cells_N(step, 0))
        return self._cells[1]

    def earlier_cells_N(self, step: StepInput, age: int) -> Tensor:
        """Where the token `age` places before each lies; before a beginning, where the first one does."""
        slots, positions = np.array(step.slots), np.array(step.starts or (0,) * step.n_sequences)
        if step.max_length > 1:
            lengths = np.array(step.lengths)
            firsts = np.repeat(lengths.cumsum() - lengths, lengths)
            positions = np.repeat(positions, lengths) + np.arange(len(firsts)) - firsts
            slots = np.repeat(slots, lengths)
        positions = np.maximum(positions - age, 0)
        cells = self._table_RB[slots, positions // BLOCK] * BLOCK + positions % BLOCK
        return carried(torch.from_numpy(cells), self.device)

    def places(self, step: StepInput) -> Places:
        """The blocks of all sequences up to the step's longest context, the same in every layer."""
        if self._places is None or self._places[0] is not step:
            blocks_RB = self._table_RB[np.array(step.slots), : -(-step.context // BLOCK)]
            in_a_run = step.n_sequences == 1 and bool((np.diff(blocks_RB[0]) == 1).all())
            first = int(blocks_RB[0, 0]) if in_a_run else None
            table_RB = carried(torch.from_numpy(np.ascontiguousarray(blocks_RB)), self.device)
            places = Places(table_RB, step.starts_R + step.lengths_R, step.context, BLOCK, first)
            self._places = (step, places)
        return self._places[1]

    def row_cells(self, slot: int, length: int) -> Tensor:
        """Where the first `length` tokens of a slot lie."""
        positions = np.arange(length)
        cells = self._table_RB[slot, positions // BLOCK] * BLOCK + positions % BLOCK
        return carried(torch.from_numpy(cells), self.device)


class PagedCache:
    """`n_blocks` blocks of entries for each layer."""

    def __init__(
        self, cfg: ModelConfig, tables: BlockTables, n_blocks: int, dtype: torch.dtype, *, n_layers: int = 0
    ) -> None:
        self.reads_fresh = False
        self.tables, self.width = tables, cfg.attention.cache_dim
        self._shape = (n_layers or cfg.n_layers, n_blocks, BLOCK * self.width)
        self.entries_LB = torch.zeros(self._shape, dtype=dtype, device=tables.device)
        self.trails: list[Tensor] = []
        if cfg.memory.layers:
            n_cells, device = n_blocks * BLOCK, tables.device
            self.trails.append(torch.zeros(n_cells, dtype=torch.int64, device=device))
            self.trails += [torch.zeros(n_cells, cfg.d_model, dtype=dtype, device=device) for _ in cfg.memory.layers]

    @property
    def size_bytes(self) -> int:
        return sum(kept.numel() * kept.element_size() for kept in (self.entries_LB, *self.trails))

    def write(self, layer: int, entries_NC: Tensor, step: StepInput) -> None:
        self._cells_MC(layer).index_copy_(0, self.tables.cells_N(step), entries_NC.to(self.entries_LB.dtype))

    def read(self, layer: int, step: StepInput) -> Tensor:
        return gather(self._cells_MC(layer), self.tables.places(step))

    def paged(self, layer: int, step: StepInput) -> tuple[Tensor, Places]:
        return self._cells_MC(layer), self.tables.places(step)

    def _cells_MC(self, layer: int) -> Tensor:
        return self.entries_LB[layer].view(-1, self.width)

    def leave(self, trail: int, x_N: Tensor, step: StepInput) -> None:
        self.trails[trail].index_copy_(0, self.tables.cells_N(step), x_N.to(self.trails[trail].dtype))

    def recall(self, trail: int, step: StepInput, age: int) -> Tensor:
        return self.trails[trail].index_select(0, self.tables.earlier_cells_N(step, age))

    def copy(self, source: int, target: int) -> None:
        """Give block `target` the entries of block `source`."""
        self.entries_LB[:, target] = self.entries_LB[:, source]
        for kept in self.trails:
            by_block = kept.unflatten(0, (-1, BLOCK))
            by_block[target] = by_block[source]

    def rest(self) -> None:
        """Give the memory back; all entries are lost."""
        self.entries_LB = self.entries_LB[:, :0].clone()
        self.trails = [kept[:0].clone() for kept in self.trails]

    def wake(self) -> None:
        """Take the memory again, if it was given back."""
        if self.entries_LB.shape != self._shape:
            self.entries_LB = self.entries_LB.new_zeros(self._shape)
            self.trails = [kept.new_zeros(self._shape[1] * BLOCK, *kept.shape[1:]) for kept in self.trails]

    def clear(self) -> None:
        """Make every entry zero: a failed step may have left numbers that are none."""
        for kept in (self.entries_LB, *self.trails):
            kept.zero_()
