"""What it takes to train a model on given chips: the layout, the time by part, device-hours, dollars, energy."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

from sobre.errors import ConfigError
from sobre.ledger.prices import GRID_KG_PER_KWH
from sobre.plan.chips import Chip
from sobre.plan.efficiency import FITTED, Efficiency
from sobre.plan.layout import ROOM, Layout, does_not_fit, n_micro_batches, training_memory
from sobre.plan.outline import Outline
from sobre.plan.schedule import unplayable
from sobre.plan.step import StepWork, overhead, seconds, work
from sobre.schemas import VERSION

TRAINED = ("fp32", "bf16", "fp16", "fp8", "fp4")
"""Formats of the matrix products of a training."""
TENSOR_FROM, PIPELINE_FROM = 5e9, 2e10
"""Active parameters from which on a layer is divided over chips, and stored ones from which on the layers are."""
POWER_SHARE = 0.85
"""Mean draw in training over the thermal design power: *assumed*."""
MOST_CHIPS = 131_072
"""Where the search for what would fit ends: more than any published cluster has."""
STATE = 12.0
"""Bytes of a saved parameter: master weight and two moments."""
PUE = 1.1
"""Energy of a data centre over that of its machines (arXiv 2302.13971, 6)."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A training run on paper."""

    model: Outline
    chip: Chip
    layout: Layout
    chips: int
    tokens: float
    seq_len: int
    batch_tokens: float
    precision: str
    flops_per_token: float
    """Of training, attention causal, MTP left out, as reports publish it."""
    step_s: float
    parts: dict[str, float]
    """Seconds of a step by part; "lost" is what waiting, restarts and checkpoints add."""
    memory: dict[str, float]
    load: StepWork
    runner_up: str = ""

    @property
    def gpu_hours(self) -> float:
        return self.step_s * self.tokens / self.batch_tokens * self.chips / 3600

    @property
    def days(self) -> float:
        return self.gpu_hours / self.chips / 24

    @property
    def mfu(self) -> float:
        """Model FLOPs over the peak, end to end: that of 16 bits, or of 32 where those are faster."""
        rate = self.flops_per_token * self.tokens / (self.gpu_hours * 3600)
        return rate / self.chip.peak(self.chip.usual)

    @property
    def saved_s(self) -> float | None:
        """Seconds in which the whole state goes to one chip's disk; none where the disk's speed is unknown."""
        return STATE * (self.model.total + self.model.mtp_total) / (self.chip.disk * 1e9) if self.chip.disk else None

    @property
    def cost_usd(self) -> float | None:
        return self.chip.usd(self.gpu_hours)

    @property
    def energy_kwh(self) -> float:
        return energy_kwh(self.chip, self.gpu_hours)

    def with_tokens(self, tokens: float) -> "TrainingPlan":
        """The same steps, more or fewer of them."""
        return replace(self, tokens=tokens)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": VERSION,
            "kind": "training",
            "model": self.model.name,
            "params_total": self.model.total,
            "params_active": self.model.active,
            "params_by_part": self.model.by_part(),
            "flops_per_token": self.flops_per_token,
            "tokens": self.tokens,
            "seq_len": self.seq_len,
            "batch_tokens": self.batch_tokens,
            "precision": self.precision,
            "chip": self.chip.name,
            "chips": self.chips,
            "gpu_hours": self.gpu_hours,
            "days": self.days,
            "cost_usd": self.cost_usd,
            "price_usd_per_h": self.chip.usd_per_h,
            "price_source": self.chip.price_source,
            "energy_kwh": self.energy_kwh,
            "co2_kg": self.energy_kwh * GRID_KG_PER_KWH,
            "grid_kg_per_kwh": GRID_KG_PER_KWH,
            "mfu": self.mfu,
            "memory_per_chip_bytes": sum(self.memory.values()),
            "memory_by_part": self.memory,
            "step_s": self.step_s,
            "saved_s": self.saved_s,
            "step_by_part": self.parts,
            "layout": self.layout.to_dict(),
            "runner_up": self.runner_up,
        }


def energy_kwh(chip: Chip, hours: float) -> float:
    """What some hours of a chip at training draw from the grid."""
    return hours * chip.watts / 1000 * POWER_SHARE * PUE


def train(
    model: Outline,
    chip: Chip,
    *,
    tokens: float,
    chips: int,
    seq_len: int = 4096,
    batch_tokens: float = 0,
    precision: str = "bf16",
    fixed: dict[str, Any] | None = None,
    must_fit: bool = True,
    eff: Efficiency = FITTED,
) -> TrainingPlan:
    """Plan a run: the fastest layout that fits, with the parts of it that `fixed` names kept.

    Raises a ConfigError that says which limit breaks first and what would help. `must_fit=False` takes the layout that
    comes nearest to fitting when none does: published runs did fit, whatever our estimate says.
    """
    chip.check_joined(chips)
    if precision not in TRAINED:
        raise ConfigError(f"no training in {precision!r}; there are {', '.join(TRAINED)}")
    fixed = fixed or {}
    Layout(**fixed, data=fixed.get("expert", 1))  # a fault in what is asked for is named before anything is divided
    batch = batch_tokens or default_batch(model, seq_len, chips)
    fits: list[tuple[float, Layout, StepWork]] = []
    tightest: tuple[float, Layout] | None = None
    for division in layouts(model, chip, chips, seq_len, batch, fixed):
        n_micro = n_micro_batches(division[0], batch, seq_len)
        for layout in division:
            memory = sum(training_memory(model, layout, seq_len, n_micro, precision).values())
            if tightest is None or memory < tightest[0]:
                tightest = memory, layout
            if memory <= chip.memory_bytes * ROOM:
                load = work(model, chip, layout, seq_len=seq_len, batch_tokens=batch, precision=precision)
                fits.append((sum(seconds(load, chip, eff).values()), layout, load))
                break  # what computes more of it again is no faster
    if tightest is None:
        raise ConfigError(_why_no_layout(model, chips, seq_len, batch, fixed))
    if not fits and must_fit:
        n_micro = n_micro_batches(tightest[1], batch, seq_len)
        parts = training_memory(model, tightest[1], seq_len, n_micro, precision)
        better = _what_would_fit(model, chip, chips, seq_len, batch_tokens, precision, fixed)
        raise ConfigError(f"{does_not_fit(model, chip, tightest[1], parts)}; what would fit: {better}")
    if not fits:
        load = work(model, chip, tightest[1], seq_len=seq_len, batch_tokens=batch, precision=precision)
        fits.append((sum(seconds(load, chip, eff).values()), tightest[1], load))
    fits.sort(key=lambda one: one[0])
    _, layout, load = fits[0]
    n_micro = n_micro_batches(layout, batch, seq_len)
    parts = seconds(load, chip, eff)
    step = sum(parts.values())
    total = step * overhead(chips, eff)
    second = next((one for one in fits[1:] if _differs(one[1], layout)), None)
    return TrainingPlan(
        model=model,
        chip=chip,
        layout=layout,
        chips=chips,
        tokens=tokens,
        seq_len=seq_len,
        batch_tokens=n_micro * layout.micro_batch * layout.data * seq_len,
        precision=precision,
        flops_per_token=model.flops_per_token(seq_len),
        step_s=total,
        parts=parts | {"lost": total - step},
        memory=training_memory(model, layout, seq_len, n_micro, precision),
        load=load,
        runner_up=f"{second[1]}: {second[0] / fits[0][0] - 1:+.1%} time" if second else "",
    )


def _why_no_layout(model: Outline, chips: int, seq_len: int, batch: float, fixed: dict[str, Any]) -> str:
    """What stands against every division, and what would do."""
    each = prod(fixed.get(name, 1) for name in ("tensor", "pipeline", "context"))
    pipeline, expert, experts = fixed.get("pipeline", 1), fixed.get("expert", 1), _n_experts(model)
    data = chips // each
    if chips % each:
        return f"tensor x pipeline x context = {each} does not divide {chips:,} chips; {each * (data + 1):,} would do"
    if pipeline > model.n_layers:
        return f"a pipeline of {pipeline} stages is longer than the {model.n_layers} layers of {model.name}"
    if expert > max(1, experts):
        return f"expert={expert} and {model.name} has {experts or 'no'} routed experts; {max(1, experts)} would do"
    if chips // pipeline % expert:
        return f"expert={expert} does not divide the {chips // pipeline:,} chips of a pipeline stage"
    if "schedule" in fixed and (why := unplayable(fixed["schedule"], pipeline, int(batch / (seq_len * data)))):
        return why
    return (
        f"a batch of {batch:,.0f} tokens is not one sequence of {seq_len:,} for each of {data:,} data-parallel chips;"
        f" {data * seq_len:,} tokens would do, or fewer chips"
    )


def _what_would_fit(
    model: Outline, chip: Chip, chips: int, seq_len: int, batch: float, precision: str, fixed: dict[str, Any]
) -> str:
    """The same chips divided freely, or how often as many of them, found by trying."""
    for kept, words in ((fixed, ""), ({}, " divided otherwise")):
        for many in (chips * 2**k for k in range(MOST_CHIPS.bit_length())):
            if many > max(MOST_CHIPS, chips):
                break
            here = batch or default_batch(model, seq_len, many)
            for layout in (one for division in layouts(model, chip, many, seq_len, here, kept) for one in division):
                parts = training_memory(model, layout, seq_len, n_micro_batches(layout, here, seq_len), precision)
                if sum(parts.values()) <= chip.memory_bytes * ROOM:
                    return f"{many:,} {chip.name}{words}, such as {layout}"
    return f"nothing up to {max(MOST_CHIPS, chips):,} {chip.name}; a larger batch, or a chip with more memory"


def default_batch(model: Outline, seq_len: int, chips: int) -> float:
    """Tokens of a step: 0.5M for small models to 64M for the largest, but never less than one sequence for 8 chips, or
    for each chip where the model is too small to be divided."""
    tokens = min(max(2**19, 2 ** (19 + _log2(model.active / 1e9))), 2**26)
    together = 8 if model.active > TENSOR_FROM or model.total > PIPELINE_FROM else 1
    least = seq_len * max(1, chips // together)
    return float(max(tokens, least))


def layouts(
    model: Outline, chip: Chip, chips: int, seq_len: int, batch: float, fixed: dict[str, Any]
) -> Iterator[list[Layout]]:
    """Divisions worth a look, each with what may be computed again, the cheapest first; what `fixed` names is kept."""

    def choices(name: str, values: list[Any]) -> list[Any]:
        return [fixed[name]] if name in fixed else values

    powers = [1, 2, 4, 8]
    tensors = choices("tensor", [t for t in powers if t <= chip.node] if model.active > TENSOR_FROM else [1])
    pipelines = choices("pipeline", [1, 2, 4, 8, 16] if model.total > PIPELINE_FROM else [1])
    experts = choices("expert", [1, 8, 16, 32, 64] if model.is_moe else [1])
    contexts = choices("context", [1, 2, 4, 8, 16] if seq_len > 16_384 else [1])
    zeros = choices("zero", [1, 3])
    recomputes = choices("recompute", ["none", "selective", "full"])
    for tensor in tensors:
        for pipeline in pipelines:
            for context in contexts:
                each = tensor * pipeline * context
                if chips % each or pipeline > model.n_layers:
                    continue
                data = chips // each
                if data * seq_len > batch * 1.001:
                    continue
                for expert in experts:
                    if (data * context * tensor) % expert or expert > max(1, _n_experts(model)):
                        continue
                    few = pipeline == 1 or ceil(batch / (seq_len * data)) < pipeline
                    schedules = choices("schedule", ["1f1b" if few else "zb1p"])
                    for schedule in schedules:
                        for zero in zeros:
                            if zero == 3 and pipeline > 1 and "zero" not in fixed:
                                continue
                            for micro in _micro_batches(seq_len, data, batch, pipeline):
                                mine = max(1, ceil(batch / (seq_len * data * micro)))
                                if unplayable(schedule, pipeline, mine):
                                    continue
                                yield [
                                    Layout(
                                        data=data,
                                        tensor=tensor,
                                        pipeline=pipeline,
                                        expert=expert,
                                        context=context,
                                        zero=zero,
                                        micro_batch=micro,
                                        schedule=schedule,
                                        chunks=_chunks(model, schedule, pipeline),
                                        recompute=recompute,
                                    )
                                    for recompute in recomputes
                                ]


def _micro_batches(seq_len: int, data: int, batch: float, pipeline: int) -> list[int]:
    """Sequences at once: powers of two, up to 64K tokens, that divide what a chip gets of the batch."""
    mine = max(1, round(batch / (seq_len * data)))
    if pipeline > 1:
        return [1]
    return [m for m in (1, 2, 4, 8, 16, 32) if m == 1 or (m * seq_len <= 65_536 and mine % m == 0)]


def _chunks(model: Outline, schedule: str, pipeline: int) -> int:
    if schedule != "interleaved":
        return 1
    return max(1, round(model.n_layers / pipeline))


def _n_experts(model: Outline) -> int:
    return max(layer.ffn.n_experts for layer in model.layers)


def _differs(one: Layout, other: Layout) -> bool:
    return replace(one, micro_batch=1) != replace(other, micro_batch=1)


def _log2(value: float) -> int:
    return max(0, round(value).bit_length() - 1)
