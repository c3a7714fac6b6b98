"""The model's side of the engine: fills the cache as the scheduler planned, and runs decode steps over it.

Shapes: N tokens of a step, R rows, V vocabulary, L routing layers, A active experts, M cells of the cache, B blocks.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from sobre.engine.batch import Batch
from sobre.engine.config import EngineConfig
from sobre.engine.drafting import OwnHead, SecondToken
from sobre.engine.scheduler import Piece, Plan, Row
from sobre.models.cache import BlockTables, Int8Cache, KVCache, PagedCache
from sobre.models.config import BLOCK, ModelConfig, MoEConfig
from sobre.models.step import StepInput, StepOutput
from sobre.models.whole_step import WholeStep
from sobre.plan.count import decode_flops, forward_flops
from sobre.runtime.device import carried


class Model(Protocol):
    """What the engine asks of a decoder."""

    cfg: ModelConfig
    dtype: torch.dtype

    def __call__(self, step: StepInput, cache: KVCache | None = None) -> StepOutput: ...

    def logits(self, hidden_ND: Tensor) -> Tensor: ...


class Runner:
    """Owns the cache and the routes; counts what it computes."""

    def __init__(
        self, model: Model, cfg: EngineConfig, max_len: int, n_blocks: int, run_seed: int, device: torch.device
    ) -> None:
        self.model, self.device, self.chunk = model, device, cfg.prefill_tokens
        self._whole = WholeStep(model)
        self.tables = BlockTables(cfg.max_batch, max_len, device)
        own_head = cfg.speculate and model.cfg.n_mtp > 0
        n_layers = model.cfg.n_layers + own_head
        kind = Int8Cache if cfg.cache == "int8" else PagedCache
        self.cache = kind(model.cfg, self.tables, n_blocks, model.dtype, n_layers=n_layers)
        self.own_head = OwnHead(cast(SecondToken, model), self.cache, run_seed, device) if own_head else None
        self.routes_LMA = _route_store(model.cfg, cfg, n_blocks, device)
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
        for pieces in pack(plan.pieces, self.chunk):
            step = _step(pieces, self.device)
            output = self.model(step, self.cache)
            self._keep_routes(step, output)
            if self.own_head is not None:
                self.own_head.read(step, output.hidden_ND, pieces)
            self.n_prefilled += step.tokens_N.numel()
            self._prefill_flops += forward_flops(self.model.cfg, step.lengths, starts=step.starts, n_logits=0)
        for source, target in plan.copies:
            self._copy(source, target)

    def decode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """logits_NV of the token after each place, and the hidden states of all that was read."""
        step = batch.step()
        output = self._whole.run(step, self.cache)
        if output is None:
            output = self.model(step, self.cache)
        self._keep_routes(step, output)
        if any(batch.late):
            self.n_prefilled += sum(batch.late)
            late = [(start, n) for start, n in zip(step.starts, batch.late, strict=True) if n]
            starts, lengths = zip(*late, strict=True)
            self._prefill_flops += forward_flops(self.model.cfg, lengths, starts=starts, n_logits=0)
        n_places = len(batch.positions_N)
        self.n_decoded += n_places
        self._n_attended += int(batch.positions_N.sum()) + n_places
        return self.model.logits(batch.at_places(output.hidden_ND)), output.hidden_ND

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
        routes = [] if self.routes_LMA is None else [self.routes_LMA.unflatten(1, (-1, BLOCK)).transpose(0, 1)]
        return self.cache.by_block() + routes

    def weights_changed(self) -> None:
        """The model's weights are others now."""
        self._whole.forget()

    def clear(self) -> None:
        """After a step that failed: nothing in the cache is to be trusted."""
        self.cache.clear()

    def _copy(self, source: int, target: int) -> None:
        for kept_B in self.by_block():
            kept_B[target] = kept_B[source]

    def _keep_routes(self, step: StepInput, output: StepOutput) -> None:
        if self.routes_LMA is not None and output.routes_LNA is not None:
            self.routes_LMA[:, self.tables.cells_N(step)] = output.routes_LNA.to(self.routes_LMA.dtype)


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


def _route_store(model: ModelConfig, cfg: EngineConfig, n_blocks: int, device: torch.device) -> Tensor | None:
    if not cfg.return_routes or not isinstance(model.ffn, MoEConfig):
        return None
    dtype = torch.int16 if model.ffn.n_experts <= torch.iinfo(torch.int16).max else torch.int32
    shape = (model.n_moe_layers, n_blocks * BLOCK, model.ffn.n_active)
    return torch.zeros(shape, dtype=dtype, device=device)
