"""The model's side of the engine: fills the cache as the scheduler planned, and runs decode steps over it.

Shapes: N tokens of a step, R rows, V vocabulary, L routing layers, A active experts, M cells of the cache, B blocks.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from sobre.engine.batch import Batch
from sobre.engine.config import EngineConfig
from sobre.engine.drafting import OwnHead, SecondToken
from sobre.engine.scheduler import Piece, Plan, Row
from sobre.engine.static import Made, Model, Record, Replays, recorder
from sobre.models.cache import BlockTables, Int8Cache, PagedCache
from sobre.models.config import ModelConfig, MoEConfig
from sobre.models.step import StepInput
from sobre.models.whole_step import WholeStep
from sobre.plan.count import decode_flops, forward_flops
from sobre.runtime.device import carried

log = logging.getLogger(__name__)


class Runner:
    """Owns the cache and the routes; counts what it computes."""

    def __init__(
        self,
        model: Model,
        cfg: EngineConfig,
        max_len: int,
        n_blocks: int,
        block: int,
        run_seed: int,
        device: torch.device,
    ) -> None:
        self.model, self.device, self.chunk = model, device, cfg.prefill_tokens
        self._whole = WholeStep(model)
        self.tables = BlockTables(cfg.max_batch, max_len, device, block)
        own_head = cfg.speculate and model.cfg.n_mtp > 0
        n_layers = model.cfg.n_layers + own_head
        kind = Int8Cache if cfg.cache == "int8" else PagedCache
        record = _recorder(model, cfg, device)
        n_spare = int(record is not None)  # a block for rows that only fill a bucket
        self.cache = kind(model.cfg, self.tables, n_blocks + n_spare, model.dtype, n_layers=n_layers)
        self._replays = None if record is None else Replays(model, self.cache, self.tables, n_blocks, record)
        self.own_head = OwnHead(cast(SecondToken, model), self.cache, run_seed, device) if own_head else None
        self.routes_LMA = _route_store(model.cfg, cfg, n_blocks * block, device)
        self.n_prefilled = self.n_decoded = 0
        self._prefill_flops = 0.0
        self._n_attended = 0
        # a decode step is linear in its rows and their contexts; the two factors are taken once
        self._flops_per_row = decode_flops(model.cfg, [0])
        self._flops_per_position = decode_flops(model.cfg, [1]) - self._flops_per_row

    @property
    def flops(self) -> float:
        """Of the forward passes so far, as `plan` counts them."""
        decoding = self.n_decoded * self._flops_per_row + self._n_attended * self._flops_per_position
        return self._prefill_flops + decoding

    def apply(self, plan: Plan) -> None:
        """Bring the cache to where the plan's rows can decode."""
        for row in plan.placed:
            self.tables.place(row.slot, row.blocks)
        for source, target in plan.found:
            self._copy(source, target)
        for pieces in pack(plan.pieces, self.chunk):
            step = _step(pieces, self.device)
            output = self.model(step, self.cache)
            self._keep_routes(step, output.routes_LNA)
            if self.own_head is not None:
                self.own_head.read(step, output.hidden_ND, pieces)
            self.n_prefilled += step.tokens_N.numel()
            self._prefill_flops += forward_flops(self.model.cfg, step.lengths, starts=step.starts, n_logits=0)
        for source, target in plan.copies:
            self._copy(source, target)

    def decode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """logits_NV of the token after each place, and the hidden states of all that was read."""
        step = batch.step()
        made = self._recorded(batch)
        if made is None:
            output = self._whole.run(step, self.cache)
            if output is None:
                output = self.model(step, self.cache)
            logits_NV = self.model.logits(batch.at_places(output.hidden_ND))
            made = Made(logits_NV, output.hidden_ND, output.routes_LNA)
        self._keep_routes(step, made.routes_LRA)
        if any(batch.late):
            self.n_prefilled += sum(batch.late)
            late = [(start, n) for start, n in zip(step.starts, batch.late, strict=True) if n]
            starts, lengths = zip(*late, strict=True)
            self._prefill_flops += forward_flops(self.model.cfg, lengths, starts=starts, n_logits=0)
        n_places = len(batch.positions_N)
        self.n_decoded += n_places
        self._n_attended += int(batch.positions_N.sum()) + n_places
        return made.logits_RV, made.hidden_RD

    def _recorded(self, batch: Batch) -> Made | None:
        """The step as a recorded one; None where it must be launched piece by piece."""
        if self._replays is None or batch.is_once:
            return None
        try:
            return self._replays.run(batch)
        except RuntimeError as error:  # of a recording; what runs again has run before
            log.warning("decode steps are launched kernel by kernel: recording one failed: %s", error)
            self._replays = None
            return None

    @property
    def n_recorded(self) -> int:
        """Sizes of decode steps that were recorded."""
        return 0 if self._replays is None else len(self._replays.buckets)

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """hidden_ND of prompts that leave nothing behind."""
        tokens_N = carried(torch.tensor([token for prompt in prompts for token in prompt]), self.device)
        lengths = tuple(len(prompt) for prompt in prompts)
        self.n_prefilled += tokens_N.numel()
        self._prefill_flops += forward_flops(self.model.cfg, lengths, n_logits=0)
        return self.model(StepInput(tokens_N, lengths)).hidden_ND

    def routes(self, row: Row) -> Tensor | None:
        """routes_LTA of every token that the model read for this row."""
        if self.routes_LMA is None or row.slot < 0:
            return None
        return self.routes_LMA[:, self.tables.row_cells(row.slot, row.n_cached)].cpu()

    def by_block(self) -> list[Tensor]:
        """All that is kept of each block: views."""
        routes = (
            [] if self.routes_LMA is None else [self.routes_LMA.unflatten(1, (-1, self.tables.block)).transpose(0, 1)]
        )
        return self.cache.by_block() + routes

    def weights_changed(self) -> None:
        """The model's weights are others now."""
        self._whole.forget()
        if self.own_head is not None:
            self.own_head.weights_changed()
        if self._replays is not None:
            self._replays.weights_changed()

    def rest(self) -> None:
        """Give the cache's memory back."""
        self.cache.rest()
        if self._replays is not None:
            self._replays.forget()

    def clear(self) -> None:
        """After a step that failed: nothing in the cache is to be trusted."""
        self.cache.clear()

    def _copy(self, source: int, target: int) -> None:
        for kept_B in self.by_block():
            kept_B[target] = kept_B[source]

    def _keep_routes(self, step: StepInput, routes_LNA: Tensor | None) -> None:
        if self.routes_LMA is not None and routes_LNA is not None:
            self.routes_LMA[:, self.tables.cells_N(step)] = routes_LNA.to(self.routes_LMA.dtype)


def _recorder(model: Model, cfg: EngineConfig, device: torch.device) -> Record | None:
    """What records this engine's decode steps, if anything does; said either way."""
    if cfg.graphs == "off":
        found: Record | str = "engine.graphs is off"
    elif cfg.speculate:
        found = "guesses differ in number from step to step"
    else:
        found = recorder(model, device)
    if isinstance(found, str):
        log.info("decode steps are launched kernel by kernel: %s", found)
        return None
    log.info("decode steps are recorded once for each size, and launched as one")
    return found


def pack(pieces: Sequence[Piece], chunk: int) -> Iterator[list[Piece]]:
    """Groups of pieces for one forward pass each, at most `chunk` tokens, padding included.

    Pieces of like length go together, for attention pads to the longest of a step; those that begin a context go apart
    from those that continue one, for they need not read the cache.
    """
    group: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (piece.start > 0, piece.length)):
        if group and ((len(group) + 1) * piece.length > chunk or (group[0].start > 0) != (piece.start > 0)):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _step(pieces: list[Piece], device: torch.device) -> StepInput:
    tokens = [token for piece in pieces for token in piece.row.context[piece.start : piece.start + piece.length]]
    return StepInput(
        carried(torch.tensor(tokens), device),
        lengths=tuple(piece.length for piece in pieces),
        starts=tuple(piece.start for piece in pieces),
        slots=tuple(piece.row.slot for piece in pieces),
        request_ids=tuple(piece.row.request.id for piece in pieces),
    )


def _route_store(model: ModelConfig, cfg: EngineConfig, n_cells: int, device: torch.device) -> Tensor | None:
    if not cfg.return_routes or not isinstance(model.ffn, MoEConfig):
        return None
    dtype = torch.int16 if model.ffn.n_experts <= torch.iinfo(torch.int16).max else torch.int32
    shape = (model.n_moe_layers, n_cells, model.ffn.n_active)
    return torch.zeros(shape, dtype=dtype, device=device)
