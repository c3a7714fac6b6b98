"""What the planner decided: the model, and what each stage may spend; `table` is for people, `to_dict` for files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from textwrap import wrap
from typing import Any, Literal

from sobre.models.config import ModelConfig
from sobre.plan.budget import Budget
from sobre.plan.count import ParamCount
from sobre.plan.own_law import Expected
from sobre.schemas import VERSION

WIDTH = 99
"""Columns of the table in the terminal."""


@dataclass(frozen=True)
class Machine:
    """What was measured of the machine (runtime/device.py)."""

    name: str
    dtype: str
    """What training computes in."""
    peak_flops: float
    """Measured matrix-product FLOPs per second in that dtype, of one device."""
    memory_bytes: float | None = None
    """None leaves the memory unchecked."""
    n_devices: int = 1
    speed_is: Literal["measured", "stated", "assumed"] = "measured"
    watts: float | None = None
    """What all of a device draws at work; none where nobody said."""

    @property
    def total_flops(self) -> float:
        return self.peak_flops * self.n_devices


@dataclass(frozen=True)
class StagePlan:
    """One stage: `amount` and `evaluation` are in the budget's unit, the rest is what they should buy."""

    name: str
    amount: float
    seconds: float
    flops: float
    tokens: int
    step_tokens: int
    steps: int
    evaluation: float
    """Kept for the evaluation after the stage."""
    text: float
    """Kept for reading the held-out text after it."""
    eval_problems: int
    """Problems that an evaluation of this size can answer."""


@dataclass(frozen=True)
class Plan:
    """A budget turned into a run."""

    budget: Budget
    price_source: str
    machine: Machine
    model: ModelConfig
    params: ParamCount
    seq_len: int
    batch_tokens: int
    lr: float
    """Peak AdamW learning rate; the recipe's stages scale it."""
    start: float
    """Kept for what comes before the first stage, in the budget's unit."""
    stages: tuple[StagePlan, ...]
    end: float
    """Kept for what comes after the last evaluation."""
    runner_up: str
    """The model that was nearly chosen, in words; empty when there was no choice."""
    notes: tuple[str, ...]
    expected: Expected | None = None
    """What the pretraining reaches, where a law of ours holds; of text such as the law's, whatever this run reads."""
    verdict: str = ""
    """Dense or mixture, and why, where the plan chose between them."""

    def stage(self, name: str) -> StagePlan:
        return next(stage for stage in self.stages if stage.name == name)

    def allowance(self, name: str, used: float, *, last_evaluation: float | None = None) -> float:
        """What stage `name` may use when `used` of the budget is gone, so that what follows keeps its share.

        `last_evaluation` is what the previous evaluation really took; it replaces the plan's guess for those to come.
        """
        coming = [stage for stage in self.stages if self.stages.index(stage) >= self.stages.index(self.stage(name))]
        evaluations = sum(stage.evaluation if last_evaluation is None else last_evaluation for stage in coming)
        left = self.budget.amount - used - self.end - evaluations - sum(stage.text for stage in coming)
        return max(0.0, left) * coming[0].amount / sum(stage.amount for stage in coming)

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {"schema": VERSION, **asdict(self)}
        document["budget"] = self.budget.to_dict()
        document["stages"] = {stage.pop("name"): stage for stage in document["stages"]}
        document["notes"] = list(self.notes)
        document["energy_kwh"] = self.energy_kwh
        return document

    def table(self) -> str:
        """For the terminal: budget, model, stages, and what else was considered."""
        rows = [("stage", self._unit("of the budget"), "time", "steps", "tokens", "FLOPs")]
        rows.append(("start", self._share(self.start), self._time(self.start), "", "", ""))
        for stage in self.stages:
            steps, tokens, flops = f"{stage.steps:,}", short(stage.tokens), short(stage.flops)
            rows.append((stage.name, self._share(stage.amount), clock(stage.seconds), steps, tokens, flops))
            problems = f"{stage.eval_problems:,} problems" if stage.eval_problems else ""
            kept = stage.evaluation + stage.text
            rows.append((" evaluation", self._share(kept), self._time(kept), problems, "", ""))
        rows.append(("end", self._share(self.end), self._time(self.end), "", "", ""))
        lines = [self._budget_line(), self._model_line(), "", *_align(rows), ""]
        if self.expected:
            lines += wrap(f"expected: {self.expected.in_words()}", WIDTH, subsequent_indent="  ")
        if self.verdict:
            lines += wrap(f"verdict: {self.verdict}", WIDTH, subsequent_indent="  ")
        if self.runner_up:
            lines += wrap(f"nearly chosen: {self.runner_up}", WIDTH, subsequent_indent="  ")
        return "\n".join(lines + [f"note: {note}" for note in self.notes]).rstrip()

    def _unit(self, text: str) -> str:
        return text if self.budget.kind == "seconds" else "of the FLOPs"

    def _share(self, amount: float) -> str:
        return f"{amount / self.budget.amount:.0%}"

    def _time(self, amount: float) -> str:
        return clock(amount) if self.budget.kind == "seconds" else ""

    def _budget_line(self) -> str:
        budget, machine = self.budget, self.machine
        usd = (
            budget.usd
            if budget.usd is not None
            else sum(s.seconds for s in self.stages) / 3600 * budget.price_usd_per_h
        )
        return (
            f"budget   {budget.text} on {machine.name}"
            f" ({machine.dtype}, {short(machine.total_flops)}FLOP/s {machine.speed_is}):"
            f" {'' if budget.kind == 'seconds' else 'about '}{usd:.4f} usd at {budget.price_usd_per_h:g} usd/h"
            f" ({self.price_source})"
            + (
                ""
                if self.energy_kwh is None
                else f"; {self.energy_kwh:.3g} kWh at {self.machine.watts:.3g} W, estimated"
            )
        )

    @property
    def energy_kwh(self) -> float | None:
        """What the machine draws over the whole budget; none where its watts or its seconds are unknown."""
        if self.machine.watts is None:
            return None
        seconds = self.budget.amount if self.budget.kind == "seconds" else sum(s.seconds for s in self.stages)
        return seconds / 3600 * self.machine.watts * self.machine.n_devices / 1000

    def _model_line(self) -> str:
        model = self.model
        return (
            f"model    {short(self.params.active)} active of {short(self.params.total)} parameters: {describe(model)}"
        )


def describe(model: ModelConfig) -> str:
    """A model in a few words."""
    if model.ffn.kind == "moe":
        ffn = f"{model.ffn.n_active} of {model.ffn.n_experts} experts of {model.ffn.d_expert}"
    else:
        ffn = f"dense {model.ffn.d_ff}"
    layers = ", ".join(map(str, model.memory.layers))
    memory = f", n-gram memory of {short(model.memory.n_rows)} rows a table before layers {layers}" if layers else ""
    return f"{model.n_layers} layers of {model.d_model}, {model.attention.kind.upper()}, {ffn}{memory}"


def short(number: float) -> str:
    """Three digits and a letter: 1234567 is 1.23M."""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def clock(seconds: float) -> str:
    """42 s, 3 min 05 s or 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
