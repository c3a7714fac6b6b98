"""The key/value cache: a protocol, and its paged form.

Attention writes one entry of width C per token and layer (MLA: the latent and the rotary key; GQA: keys and values) and
reads the entries of its sequences back. How the entries lie in memory is the cache's own business. Here they lie in
blocks of `BLOCK` tokens, or of as many as a kernel asks for (engine/pages.py); a table names the blocks of each
sequence, so that sequences grow without moving, and several may hold the blocks of a beginning that they share
(PagedAttention, arXiv 2309.06180). Who gets which block is decided elsewhere (engine/scheduler.py).

Shapes: L layers, R sequences, S cached positions, C entry width, P vectors of an entry, N tokens, B blocks, M cells
(one for each token of each block).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sobre.kernels.int8_entries import from_int8, to_int8
from sobre.kernels.native.whole import Cells
from sobre.kernels.paged import Places, gather
from sobre.models.config import BLOCK, ModelConfig
from sobre.models.step import StepInput
from sobre.runtime.device import carried


class KVCache(Protocol):
    """Where attention keeps what it must not compute again."""

    reads_fresh: bool
    """Whether attention reads even what a step that begins at 0 has just written: one way of computing for all."""

    def write(self, layer: int, entries_NC: Tensor, step: StepInput) -> Tensor | None:
        """Store the entries of the step's tokens at their positions; return them as they will be read where the cache
        rounds them, else None: a step that does not read them back must compute with the same numbers."""

    def read(self, layer: int, step: StepInput) -> Tensor:
        """Return entries_RSC, S = the longest context of the step; what lies beyond a sequence's own is undefined."""

    def leave(self, trail: int, x_N: Tensor, step: StepInput) -> None:
        """Store what the memory keeps of each token: classes (trail 0), or the n-th layer's values."""

    def recall(self, trail: int, step: StepInput, age: int) -> Tensor:
        """Return x_N of the token `age` places before each; undefined before a beginning."""

    def paged(self, layer: int, step: StepInput) -> tuple[Tensor, Places]:
        """cells_MC of a layer and where in them the entries of the step's sequences lie: for reading in place."""

    def in_place(self, step: StepInput) -> Cells | None:
        """The same of all layers and of every token by itself, for what writes the step's entries first; None where
        they cannot be read so."""


class BlockTables:
    """Which blocks each slot holds, and where the tokens of a step lie in them: for all that is kept per token."""

    def __init__(self, n_slots: int, max_len: int, device: str | torch.device, block: int = BLOCK) -> None:
        self.device, self.block = torch.device(device), block
        self._table_RB = np.zeros((n_slots, -(-max_len // block)), dtype=np.int64)
        self._cells: tuple[StepInput, Tensor] | None = None
        self._places: tuple[StepInput, Places] | None = None

    def place(self, slot: int, blocks: Sequence[int]) -> None:
        """From now on the slot's tokens lie in these blocks, `block` each, in this order."""
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
        cells = self._table_RB[slots, positions // self.block] * self.block + positions % self.block
        return carried(torch.from_numpy(cells), self.device)

    def places(self, step: StepInput) -> Places:
        """The blocks of all sequences up to the step's longest context, the same in every layer."""
        if self._places is None or self._places[0] is not step:
            blocks_RB = self._table_RB[np.array(step.slots), : -(-step.context // self.block)]
            in_a_run = step.n_sequences == 1 and bool((np.diff(blocks_RB[0]) == 1).all())
            first = int(blocks_RB[0, 0]) if in_a_run else None
            table_RB = carried(torch.from_numpy(np.ascontiguousarray(blocks_RB)), self.device)
            places = Places(table_RB, step.starts_R + step.lengths_R, step.context, self.block, first)
            self._places = (step, places)
        return self._places[1]

    def hold(self, step: StepInput, cells_N: Tensor, places: Places) -> None:
        """Answer for this step with tensors that somebody else fills, whatever its slots say."""
        self._cells, self._places = (step, cells_N), (step, places)

    def blocks_of(self, slots: Sequence[int], n_blocks: int) -> NDArray[np.int64]:
        """The first blocks of each slot, on the host; 0 beyond the longest context."""
        rows = self._table_RB[np.array(slots), :n_blocks]
        return np.pad(rows, ((0, 0), (0, n_blocks - rows.shape[1])))

    def row_cells(self, slot: int, length: int) -> Tensor:
        """Where the first `length` tokens of a slot lie."""
        positions = np.arange(length)
        cells = self._table_RB[slot, positions // self.block] * self.block + positions % self.block
        return carried(torch.from_numpy(cells), self.device)


class PagedCache:
    """`n_blocks` blocks of entries for each layer."""

    def __init__(
        self, cfg: ModelConfig, tables: BlockTables, n_blocks: int, dtype: torch.dtype, *, n_layers: int = 0
    ) -> None:
        self.reads_fresh = False
        self.tables, self.dtype, self.attention = tables, dtype, cfg.attention
        self._layered = {
            name: ((n_layers or cfg.n_layers, n_blocks, tables.block * width), kind)
            for name, (width, kind) in self._widths().items()
        }
        self._trailed: list[tuple[tuple[int, ...], torch.dtype]] = []
        if cfg.memory.layers:
            n_cells = n_blocks * tables.block
            self._trailed = [((n_cells,), torch.int64), *[((n_cells, cfg.d_model), dtype)] * len(cfg.memory.layers)]
        self.layers: dict[str, Tensor] = {}
        self.trails: list[Tensor] = []
        self.wake()

    def _widths(self) -> dict[str, tuple[int, torch.dtype]]:
        """What is kept of a token in each layer: how many numbers of which kind."""
        return {"entries": (self.attention.cache_dim, self.dtype)}

    @property
    def size_bytes(self) -> int:
        return sum(kept.numel() * kept.element_size() for kept in (*self.layers.values(), *self.trails))

    def write(self, layer: int, entries_NC: Tensor, step: StepInput) -> Tensor | None:
        self._cells("entries", layer).index_copy_(0, self.tables.cells_N(step), entries_NC.to(self.dtype))
        return None

    def read(self, layer: int, step: StepInput) -> Tensor:
        return gather(self._cells("entries", layer), self.tables.places(step))

    def paged(self, layer: int, step: StepInput) -> tuple[Tensor, Places]:
        return self._cells("entries", layer), self.tables.places(step)

    def in_place(self, step: StepInput) -> Cells:
        places = self.tables.places(step)
        if step.max_length > 1:  # a token for itself: it sees the cells of its sequence up to its own
            table_NB = places.table_RB[step.sequence_N]
            places = replace(places, table_RB=table_NB, lengths_R=step.positions_N + 1, first=None)
        return Cells(self._of_all("entries"), self.tables.cells_N(step), places)

    def _cells(self, name: str, layer: int) -> Tensor:
        """(M, numbers of a token): what is kept under this name in a layer."""
        kept_LB = self.layers[name]
        return kept_LB[layer].view(-1, kept_LB.shape[2] // self.tables.block)

    def _of_all(self, name: str) -> Tensor:
        """(L, M, numbers of a token): the same of all layers."""
        kept_LB = self.layers[name]
        return kept_LB.view(len(kept_LB), -1, kept_LB.shape[2] // self.tables.block)

    def leave(self, trail: int, x_N: Tensor, step: StepInput) -> None:
        self.trails[trail].index_copy_(0, self.tables.cells_N(step), x_N.to(self.trails[trail].dtype))

    def recall(self, trail: int, step: StepInput, age: int) -> Tensor:
        return self.trails[trail].index_select(0, self.tables.earlier_cells_N(step, age))

    def by_block(self) -> list[Tensor]:
        """All that is kept, block by block: views of the memory."""
        return [
            *(kept_LB.transpose(0, 1) for kept_LB in self.layers.values()),
            *(kept.unflatten(0, (-1, self.tables.block)) for kept in self.trails),
        ]

    def rest(self) -> None:
        """Give the memory back; all entries are lost."""
        self.layers, self.trails = {}, []

    def wake(self) -> None:
        """Take the memory, if it is not held."""
        if not self.layers:
            device = self.tables.device
            self.layers = {
                name: torch.zeros(shape, dtype=kind, device=device) for name, (shape, kind) in self._layered.items()
            }
            self.trails = [torch.zeros(shape, dtype=kind, device=device) for shape, kind in self._trailed]

    def clear(self) -> None:
        """Make every entry zero: a failed step may have left numbers that are none."""
        for kept in (*self.layers.values(), *self.trails):
            kept.zero_()


class Int8Cache(PagedCache):
    """The same in 8 bits a number and a scale for each vector of an entry; what the n-gram memory keeps stays whole."""

    def _widths(self) -> dict[str, tuple[int, torch.dtype]]:
        n_vectors = sum(n for n, _ in self.attention.cache_parts)
        return {"entries": (self.attention.cache_dim, torch.int8), "scales": (n_vectors, torch.float32)}

    def write(self, layer: int, entries_NC: Tensor, step: StepInput) -> Tensor | None:
        codes_NC, scales_NP = to_int8(entries_NC, self.attention.cache_parts)
        cells_N = self.tables.cells_N(step)
        self._cells("entries", layer).index_copy_(0, cells_N, codes_NC)
        self._cells("scales", layer).index_copy_(0, cells_N, scales_NP)
        return from_int8(codes_NC, scales_NP, self.attention.cache_parts, entries_NC.dtype)

    def read(self, layer: int, step: StepInput) -> Tensor:
        places = self.tables.places(step)
        codes_RSC, scales_RSP = (gather(self._cells(name, layer), places) for name in ("entries", "scales"))
        return from_int8(codes_RSC, scales_RSP, self.attention.cache_parts, self.dtype)

    def in_place(self, step: StepInput) -> Cells:
        return super().in_place(step)._replace(scales_LMP=self._of_all("scales"))

    def paged(self, layer: int, step: StepInput) -> tuple[Tensor, Places]:
        """The blocks of the step's sequences alone, widened, one after the other."""
        places = self.tables.places(step)
        n_rows, n_blocks = places.table_RB.shape
        table_RB = torch.arange(n_rows * n_blocks, device=self.tables.device).view(n_rows, n_blocks)
        whole = replace(places, longest=n_blocks * places.block)
        codes_RSC, scales_RSP = (gather(self._cells(name, layer), whole) for name in ("entries", "scales"))
        cells_MC = from_int8(codes_RSC, scales_RSP, self.attention.cache_parts, self.dtype).flatten(0, 1)
        return cells_MC, replace(places, table_RB=table_RB, first=0)
