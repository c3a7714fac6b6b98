"""The curves of a run: metric lines to short lists of points, one set a stage, ready to draw."""

from collections.abc import Sequence
from typing import Any

from sobre.report.run_files import Record

POINTS = 240
"""Most points of a curve: neighbours are averaged, so that a long run makes no larger a page."""
COLUMNS = 48
"""Most columns of the picture of expert load."""
FIELDS = (
    "loss mtp_loss lr grad_norm tokens_per_s reward pass_rate grade format_rate answer_tokens checks difficulty "
    "truncated empty language calls flat_groups signal clipped_low clipped_high logp_gap_mean logp_gap_max "
    "routes_differ max_violation"
).split()


def curves(metrics: list[Record], stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each stage: step, time_s and flops (both since the run began), and every field that its lines carry."""
    result: dict[str, dict[str, Any]] = {}
    flops_before = 0.0
    for stage in stages:
        lines = [line for line in metrics if line["stage"] == stage]
        if not lines:
            continue
        groups = _groups(lines, POINTS)
        curve: dict[str, Any] = {name: [g[-1].get(name) for g in groups] for name in ("step", "time_s", "tokens")}
        curve["flops"] = [flops_before + g[-1].get("flops", 0.0) for g in groups]
        for name in FIELDS:
            if any(line.get(name) is not None for line in lines):
                curve[name] = [_mean([line[name] for line in g if line.get(name) is not None]) for g in groups]
        result[stage] = curve
        flops_before += lines[-1].get("flops", 0.0)
    return result


def load(metrics: list[Record]) -> dict[str, Any] | None:
    """How evenly the experts are used: for each layer, expert and moment, the load over the layer's mean."""
    lines = [line for line in metrics if line.get("load_LE")]
    if not lines:
        return None
    groups = _groups(lines, COLUMNS)
    n_layers, n_experts = len(lines[0]["load_LE"]), len(lines[0]["load_LE"][0])
    ratio = [
        [[_ratio(group, layer, expert) for group in groups] for expert in range(n_experts)] for layer in range(n_layers)
    ]
    return {"stage": [g[-1]["stage"] for g in groups], "time_s": [g[-1]["time_s"] for g in groups], "ratio_LES": ratio}


def _ratio(group: list[Record], layer: int, expert: int) -> float:
    rows = [line["load_LE"][layer] for line in group]
    total = sum(map(sum, rows))
    return round(sum(row[expert] for row in rows) * len(rows[0]) / total, 4) if total else 1.0


def _groups(lines: list[Record], most: int) -> list[list[Record]]:
    """Cut the lines into at most `most` runs of neighbours of nearly equal size."""
    n = min(most, len(lines))
    edges = [i * len(lines) // n for i in range(n + 1)]
    return [lines[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def _mean(values: list[float]) -> float | None:
    return float(f"{sum(values) / len(values):.6g}") if values else None
