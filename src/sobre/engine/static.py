"""Decode steps over fixed buffers, so that a device can record one and run it again (CUDA graphs).

A step of one new token for each row reads five things that change: tokens, positions, cells, contexts' lengths and the
blocks of each row. `StaticStep` keeps them in buffers of one size, rows and blocks rounded up to a bucket; whatever it
computes is then a function of what lies in the buffers, with no number of the host in it. Rows that are only there to
fill a bucket read and write a block that nobody else has. Where the device records, `Replays` has each bucket recorded
when it is first met and only fills the buffers after that: one launch for a step instead of a thousand.

Recording is CUDA's (`cuda_graph.py`); everything else here runs anywhere.

Shapes: R rows of a bucket, B blocks of a row, V vocabulary, D width, L routing layers, A active experts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sobre.engine.batch import Batch
from sobre.kernels import select
from sobre.kernels.paged import Places
from sobre.models.cache import BlockTables, KVCache
from sobre.models.config import LightningConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.models.lora import ExpertsLoRA
from sobre.models.moe import MoE, local_dispatch
from sobre.models.step import StepInput, StepOutput
from sobre.runtime.cuda_graph import Recorder
from sobre.runtime.device import pinned


class Model(Protocol):
    """What the engine asks of a decoder."""

    cfg: ModelConfig
    dtype: torch.dtype

    def __call__(self, step: StepInput, cache: KVCache | None = None) -> StepOutput: ...

    def logits(self, hidden_ND: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Made:
    """What a step leaves, in buffers that the next one overwrites."""

    logits_RV: Tensor
    hidden_RD: Tensor
    routes_LRA: Tensor | None


Record = Callable[[Callable[[], Made]], tuple[Callable[[], None], Made]]
"""Records some work: what runs it again, and the tensors that every run fills."""


class StaticStep:
    """One bucket: a step of `n_rows` rows with up to `n_blocks` blocks each."""

    def __init__(self, model: Model, cache: KVCache, tables: BlockTables, n_rows: int, n_blocks: int) -> None:
        self.model, self.cache, self.tables, self.n_rows = model, cache, tables, n_rows
        device = tables.device
        self.tokens_R = torch.zeros(n_rows, dtype=torch.int64, device=device)
        self._there = torch.zeros(n_rows * (3 + n_blocks), dtype=torch.int64, device=device)
        self._here = pinned(torch.zeros(n_rows * (3 + n_blocks), dtype=torch.int64), device)
        block = tables.block
        positions_R, self._cells_R, lengths_R, table = self._there.split([n_rows, n_rows, n_rows, n_rows * n_blocks])
        # what a step knows of itself on the host is the bucket's; what varies is looked up in the buffers
        self.step = StepInput(
            self.tokens_R,
            lengths=(1,) * n_rows,
            starts=(n_blocks * block - 1,) * n_rows,
            slots=(0,) * n_rows,
        )
        self.step.__dict__["positions_N"] = positions_R  # the cached property
        self._places = Places(table.view(n_rows, n_blocks), lengths_R, n_blocks * block, block)

    def fill(self, batch: Batch, spare: int) -> None:
        """Take over a batch's rows; the others get the block `spare`. The host waits for nothing."""
        n, block = len(batch.rows), self.tables.block
        positions_R, cells_R, lengths_R, table = np.split(
            self._here.numpy(), np.cumsum([self.n_rows, self.n_rows, self.n_rows])
        )
        table_RB = table.reshape(self.n_rows, -1)
        positions_R[n:], cells_R[n:], lengths_R[n:], table_RB[n:] = 0, spare * block, 1, spare
        positions_R[:n] = batch.starts_R
        table_RB[:n] = self.tables.blocks_of(batch.slots, table_RB.shape[1])
        cells_R[:n] = table_RB[np.arange(n), batch.starts_R // block] * block + batch.starts_R % block
        lengths_R[:n] = batch.starts_R + 1
        self._there.copy_(self._here, non_blocking=True)
        self.tokens_R[:n].copy_(batch.tokens_T)

    def run(self) -> Made:
        """The step over what lies in the buffers."""
        self.tables.hold(self.step, self._cells_R, self._fresh_places())
        output = self.model(self.step, self.cache)
        return Made(self.model.logits(output.hidden_ND), output.hidden_ND, output.routes_LNA)

    def _fresh_places(self) -> Places:
        """Without what was derived from the buffers before: it is derived anew inside the step."""
        places = self._places
        return Places(places.table_RB, places.lengths_R, places.longest, places.block)


class Replays:
    """The steps that were recorded, by bucket, over one cache."""

    def __init__(self, model: Model, cache: KVCache, tables: BlockTables, spare: int, record: Record) -> None:
        self._model, self._cache, self._tables, self._spare, self._record = model, cache, tables, spare, record
        self._known: dict[tuple[int, int], tuple[StaticStep, Callable[[], None], Made]] = {}
        self._weights = _places(model)

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """(rows, blocks) of every step recorded so far."""
        return sorted(self._known)

    def forget(self) -> None:
        """The cache lies elsewhere now."""
        self._known.clear()

    def weights_changed(self) -> None:
        """New numbers in the same places are read by what was recorded; new places are not."""
        places = _places(self._model)
        if places != self._weights:
            self._weights = places
            self.forget()

    def run(self, batch: Batch) -> Made:
        """A batch's decode step, of one new token a row: what the model makes of it, without the filling."""
        n = len(batch.rows)
        key = bucket(n), bucket(int(batch.starts_R.max()) // self._tables.block + 1)
        found = self._known.get(key)
        if found is None:
            step = StaticStep(self._model, self._cache, self._tables, *key)
            step.fill(batch, self._spare)
            found = self._known[key] = (step, *self._record(step.run))
        else:
            found[0].fill(batch, self._spare)
        found[1]()
        made = found[2]
        routes_LNA = None if made.routes_LRA is None else made.routes_LRA[:, :n]
        return Made(made.logits_RV[:n], made.hidden_RD[:n], routes_LNA)


def _places(model: object) -> list[int]:
    """Where a model's numbers lie."""
    if not isinstance(model, nn.Module):
        return []
    return [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]


def bucket(n: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that holds n."""
    power = 1 << (n - 1).bit_length()
    return power // 4 * 3 if power >= 4 and n <= power // 4 * 3 else power


def recorder(model: object, device: torch.device) -> Record | str:
    """What records decode steps of this model there, or why nothing does."""
    return why_not(model, device) or Recorder(device)


def why_not(model: object, device: torch.device) -> str | None:
    """Why no decode step of this model can be recorded there: something asks the device, or varies; None if it can."""
    cfg = getattr(model, "cfg", None)
    if device.type != "cuda":
        return f"graphs are CUDA's, and this is {device.type}"
    if not isinstance(model, nn.Module) or not isinstance(cfg, ModelConfig):
        return "it is no decoder of ours"
    return why_it_varies(model, cfg) or _asks_the_device(model, cfg, device)


def why_it_varies(model: nn.Module, cfg: ModelConfig) -> str | None:
    """What of a model's decode step is decided on the host, step by step; None for nothing."""
    if cfg.memory.layers:
        return "n-gram memory looks for earlier tokens on the host"
    if isinstance(cfg.attention, LightningConfig):
        return "lightning attention was not made for it"
    if isinstance(cfg.attention, MLAConfig) and cfg.attention.indexer:
        return "sparse attention is decided by the longest context"
    for module in model.modules():
        if isinstance(module, ExpertsLoRA):
            return "adapters on experts count rows on the host"
        if isinstance(module, MoE) and module.dispatch is not local_dispatch:
            return "experts are spread over processes, or packed"
        if isinstance(module, MoE) and module.gate_EFD_factors is not None:
            return "experts in FP8 blocks are visited one by one"
    return None


GROUPED_WITHOUT_ASKING = ((9, 0), (10, 0))
"""Compute capabilities on which torch's grouped product leaves the counts on the device (GroupedBlas.cpp)."""


def _asks_the_device(model: nn.Module, cfg: ModelConfig, device: torch.device) -> str | None:
    dtype = getattr(model, "dtype", torch.float32)
    if isinstance(cfg.attention, MLAConfig) and select.choose("latent_decode", "cuda", dtype).name == "flashinfer":
        return "FlashInfer plans each step on the host"
    if isinstance(cfg.ffn, MoEConfig):
        if dtype != torch.bfloat16 or torch.cuda.get_device_capability(device) not in GROUPED_WITHOUT_ASKING:
            return "torch's grouped product asks for the experts' counts here"
    return None
