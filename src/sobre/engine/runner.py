"""The model's side of the engine: fills the cache as the scheduler planned, and runs decode steps over it.

Shapes: N tokens of a step, R rows, S cached positions, V vocabulary, L routing layers, A active experts.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sobre.engine.batch import Batch
from sobre.engine.config import EngineConfig
from sobre.engine.scheduler import Copy, Plan, Row
from sobre.models.cache import ContiguousCache, KVCache
from sobre.models.config import ModelConfig, MoEConfig
from sobre.models.step import StepInput, StepOutput
from sobre.plan.count import decode_flops, forward_flops


class Model(Protocol):
    """What the engine asks of a decoder."""

    cfg: ModelConfig
    dtype: torch.dtype

    def __call__(self, step: StepInput, cache: KVCache | None = None) -> StepOutput: ...

    def logits(self, hidden_ND: Tensor) -> Tensor: ...


class Runner:
    """Owns the cache and the routes; counts what it computes."""

    def __init__(self, model: Model, cfg: EngineConfig, max_len: int, device: torch.device) -> None:
        self.model, self.device, self.chunk = model, device, cfg.prefill_tokens
        self.cache = ContiguousCache(model.cfg, cfg.max_batch, max_len, model.dtype, str(device))
        self.routes_LRSA = _route_store(model.cfg, cfg, max_len, device)
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
        """Bring the cache to where the running rows can decode."""
        for copy in plan.moves:
            self._copy(copy)
        for step in pack(plan.prefills, self.chunk, self.device):
            self._keep_routes(step, self.model(step, self.cache))
            self.n_prefilled += step.tokens_N.numel()
            self._prefill_flops += forward_flops(self.model.cfg, step.lengths, starts=step.starts, n_logits=0)
        for copy in plan.copies:
            self._copy(copy)

    def decode(self, batch: Batch) -> Tensor:
        """logits_RV of the token after each row's last."""
        step = batch.step()
        output = self.model(step, self.cache)
        self._keep_routes(step, output)
        self.n_decoded += len(batch.rows)
        self._n_attended += int(batch.positions_R.sum()) + len(batch.rows)
        return self.model.logits(output.hidden_ND)

    def routes(self, row: Row) -> Tensor | None:
        """routes_LTA of every token that the model read for this row."""
        return None if self.routes_LRSA is None else self.routes_LRSA[:, row.slot, : row.n_cached].clone()

    def _copy(self, copy: Copy) -> None:
        self.cache.copy(copy.source, copy.target, copy.length)
        if self.routes_LRSA is not None:
            self.routes_LRSA[:, copy.target, : copy.length] = self.routes_LRSA[:, copy.source, : copy.length]

    def _keep_routes(self, step: StepInput, output: StepOutput) -> None:
        if self.routes_LRSA is not None and output.routes_LNA is not None:
            slots_N = torch.tensor(step.slots, device=self.device)[step.sequence_N]
            self.routes_LRSA[:, slots_N, step.positions_N] = output.routes_LNA.to(self.routes_LRSA.dtype)


def pack(rows: Sequence[Row], chunk: int, device: torch.device) -> Iterator[StepInput]:
    """Steps that compute the context of each row but its last token, at most `chunk` tokens each, padding included.

    Rows of like length go together, for attention pads to the longest of a step; a longer row goes in pieces alone.
    """
    pieces: list[tuple[Row, int, int]] = []
    for row in sorted(rows, key=lambda row: row.n_cached):
        if pieces and (len(pieces) + 1) * row.n_cached > chunk:
            yield _step(pieces, device)
            pieces = []
        for start in range(0, row.n_cached, chunk):
            pieces.append((row, start, min(chunk, row.n_cached - start)))
            if row.n_cached > chunk:
                yield _step(pieces, device)
                pieces = []
    if pieces:
        yield _step(pieces, device)


def _step(pieces: list[tuple[Row, int, int]], device: torch.device) -> StepInput:
    tokens = [token for row, start, length in pieces for token in row.context[start : start + length]]
    return StepInput(
        torch.tensor(tokens, device=device),
        lengths=tuple(length for _, _, length in pieces),
        starts=tuple(start for _, start, _ in pieces),
        slots=tuple(row.slot for row, _, _ in pieces),
        request_ids=tuple(row.request.id for row, _, _ in pieces),
    )


def _route_store(model: ModelConfig, cfg: EngineConfig, max_len: int, device: torch.device) -> Tensor | None:
    if not cfg.return_routes or not isinstance(model.ffn, MoEConfig):
        return None
    dtype = torch.int16 if model.ffn.n_experts <= torch.iinfo(torch.int16).max else torch.int32
    shape = (model.n_moe_layers, cfg.max_batch, max_len, model.ffn.n_active)
    return torch.zeros(shape, dtype=dtype, device=device)
