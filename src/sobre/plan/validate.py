"""Predicted against published: the constants fitted again, each run predicted with and without its own row.

The fit minimises the squared logarithms of predicted over published hours, in units of NOISE, plus the squared
distance of each constant from its prior, in units of PRIOR_SPREAD: with 7 constants and few runs, a constant that the
runs do not determine stays where micro-benchmarks put it. Left out means: fitted again on the other scored rows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median
from typing import Any

from sobre.plan.beyond import Check, checks
from sobre.plan.chips import chip
from sobre.plan.efficiency import NOISE, PRIOR, PRIOR_SPREAD, Efficiency
from sobre.plan.known import model
from sobre.plan.runs import Run, published
from sobre.plan.step import StepWork, overhead, seconds
from sobre.plan.train import train
from sobre.schemas import VERSION

CHIPS_UNSTATED = 2048
"""Size of the cluster where a paper states only hours: the one that LLaMA, Llama 2 and DeepSeek name elsewhere."""

BATCH_UNSTATED = 16_777_216.0

Slopes = tuple[float, list[float]]


@dataclass(frozen=True)
class Case:
    """A run, ready to be timed with any constants: (work, chip, device-hours of one second of a step) per phase."""

    run: Run
    phases: tuple[tuple[StepWork, Any, float], ...]
    layout: str

    def hours(self, eff: Efficiency) -> float:
        """Predicted device-hours."""
        return sum(
            sum(seconds(load, on, eff).values()) * overhead(load.waiting, eff) * scale
            for load, on, scale in self.phases
        )

    def miss(self, eff: Efficiency) -> float:
        """Logarithm of predicted over published."""
        return log(self.hours(eff) / self.run.hours)


@dataclass(frozen=True)
class Row:
    """One line of the table; errors are predicted over published, less 1."""

    run: Run
    predicted: float
    error: float
    left_out: float | None
    """The error of the prediction made without this row; none where the row was never in the fit."""
    layout: str


@dataclass(frozen=True)
class Validation:
    """The table and what it says."""

    rows: tuple[Row, ...]
    fitted: Efficiency
    without_deepseek: float
    """DeepSeek-V3's error with V3 and V2 left out of the fit."""
    beyond: tuple[Check, ...]
    """Figures that are no pretraining."""

    def spread(self, *, left_out: bool, since: int = 0) -> dict[str, float]:
        """Median and largest absolute error of the scored rows since a year; the largest as a factor."""
        errors = [
            row.left_out if left_out else row.error
            for row in self.rows
            if row.left_out is not None and row.run.year >= since
        ]
        factors = [max(1 + e, 1 / (1 + e)) for e in errors if e is not None]
        return {"n": len(errors), "median": median(abs(e) for e in errors if e is not None), "worst": max(factors)}

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": VERSION,
            "kind": "validation",
            "rows": [
                {
                    "run": row.run.name,
                    "date": row.run.date,
                    "chip": row.run.chip,
                    "published_hours": row.run.hours,
                    "predicted_hours": row.predicted,
                    "error": row.error,
                    "error_left_out": row.left_out,
                    "unscored": row.run.unscored,
                    "mark": row.run.mark,
                    "source": row.run.source,
                    "layout": row.layout,
                }
                for row in self.rows
            ],
            "constants": {name: getattr(self.fitted, name) for name in self.fitted.__dataclass_fields__},
            "priors": {name: getattr(PRIOR, name) for name in PRIOR.__dataclass_fields__},
            "fitted": self.spread(left_out=False),
            "left_out": self.spread(left_out=True),
            "fitted_since_2024": self.spread(left_out=False, since=2024),
            "left_out_since_2024": self.spread(left_out=True, since=2024),
            "deepseek_v3_without_v3_and_v2": self.without_deepseek,
            "beyond_pretraining": [check.to_dict() for check in self.beyond],
        }


def validate() -> Validation:
    """Fit, leave out, compare. Pure arithmetic, the same every time."""
    cases = [_case(run) for run in published()]
    scored = [case for case in cases if not case.run.unscored]
    full = fit(scored, PRIOR)
    start = {case.run.name: slopes(case, full) for case in scored}  # where every fit without a row begins
    left: dict[str, Efficiency] = {}
    for case in scored:
        left[case.run.name] = fit([other for other in scored if other is not case], full, rounds=2, start_slopes=start)
    others = [case for case in scored if not case.run.name.startswith("deepseek")]
    neither = fit(others, full, rounds=3, start_slopes=start)
    v3 = next(case for case in scored if case.run.name == "deepseek-v3")
    rows = tuple(
        Row(
            case.run,
            case.hours(full),
            exp(case.miss(full)) - 1,
            exp(case.miss(left[case.run.name])) - 1 if case.run.name in left else None,
            case.layout,
        )
        for case in cases
    )
    predicted = {row.run.name: row.predicted for row in rows}
    beyond = checks(predicted["deepseek-v3"], predicted["deepseek-v3-context"])
    return Validation(rows, full, exp(v3.miss(neither)) - 1, beyond)


def fit(
    cases: Sequence[Case], start: Efficiency, rounds: int = 6, start_slopes: Mapping[str, Slopes] | None = None
) -> Efficiency:
    """Gauss-Newton in the logarithms of the constants, from `start`; the prior is always PRIOR.

    `start_slopes` are the slopes at `start`, by the name of the run, where they are known already.
    """
    logs, prior = [log(v) for v in start.values()], [log(v) for v in PRIOR.values()]
    papers = Counter(case.run.paper for case in cases)
    weights = [1 / NOISE**2 / papers[case.run.paper] ** 0.5 for case in cases]
    n = len(logs)
    for turn in range(rounds):
        here = Efficiency.of([exp(v) for v in logs])
        known = start_slopes if start_slopes and not turn else {}
        square, right = [[0.0] * n for _ in range(n)], [0.0] * n
        for case, weight in zip(cases, weights, strict=True):
            miss, slope = known.get(case.run.name) or slopes(case, here)
            for i in range(n):
                right[i] -= weight * slope[i] * miss
                for j in range(n):
                    square[i][j] += weight * slope[i] * slope[j]
        for k in range(n):
            square[k][k] += 1 / PRIOR_SPREAD**2
            right[k] += (prior[k] - logs[k]) / PRIOR_SPREAD**2
        logs = [v + step for v, step in zip(logs, _solve(square, right), strict=True)]
    return Efficiency.of([exp(v) for v in logs])


def slopes(case: Case, here: Efficiency) -> Slopes:
    """The miss of a case, and how it moves with the logarithm of each constant."""
    logs, miss = [log(v) for v in here.values()], case.miss(here)
    found = []
    for k in range(len(logs)):
        moved = Efficiency.of([exp(v + 1e-4 * (i == k)) for i, v in enumerate(logs)])
        found.append((case.miss(moved) - miss) / 1e-4)
    return miss, found


def _case(run: Run) -> Case:
    """Lay the run out as published, the rest as the planner would."""
    fixed = dict(run.layout) | ({"recompute": run.recompute} if run.recompute else {})
    outline, on, chips = model(run.model), chip(run.chip), run.chips or CHIPS_UNSTATED
    phases, layout = [], ""
    batch = run.batch_tokens or BATCH_UNSTATED
    for tokens, length in run.phases or [[run.tokens, float(run.seq_len)]]:
        plan = train(
            outline, on, tokens=tokens, chips=chips, seq_len=int(length), batch_tokens=batch,
            precision=run.precision, fixed=fixed, must_fit=False, eff=PRIOR,
        )  # fmt: skip
        phases.append((plan.load, on, tokens / plan.batch_tokens * chips / 3600))
        layout = str(plan.layout)
    return Case(run, tuple(phases), layout)


def _solve(square: list[list[float]], right: list[float]) -> list[float]:
    """Solve a small symmetric positive system by elimination."""
    n = len(right)
    rows = [[*square[i], right[i]] for i in range(n)]
    for i in range(n):
        for j in range(i + 1, n):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [b - factor * a for a, b in zip(rows[i], rows[j], strict=True)]
    found = [0.0] * n
    for i in reversed(range(n)):
        found[i] = (rows[i][n] - sum(rows[i][j] * found[j] for j in range(i + 1, n))) / rows[i][i]
    return found
