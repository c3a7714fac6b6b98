"""The figures of the report, each from the numbers in report.json."""

from collections.abc import Callable
from typing import Any

import matplotlib.ticker as ticker
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from sobre.report import words
from sobre.report.claims import stage_name
from sobre.report.svg import colour, figure, style, to_svg

Report = dict[str, Any]
LEVELS = (0.25, 0.5, 0.8, 1.25, 2.0, 4.0)
"""Edges, as load over the mean, of the seven shades of the load picture; the middle one is left blank."""
MAX_LAYERS = 6
REINFORCED = ("rl", "rl2")
MOVED = {"answer_tokens": "Response, tokens", "checks": "Checks in a response", "difficulty": "Difficulty asked"}
"""What reinforcement learning moves beside the reward: fields of a curve and what a panel is called."""
HEALTH = {
    "format_rate": "In the agreed form",
    "logp_gap_mean": "Sampler – trainer, nats",
    "routes_differ": "Tokens routed otherwise",
    "flat_groups": "Groups without variance",
    "signal": "Gradient that steps share",
}
"""Signs of sound learning, in the same form."""


def draw_all(report: Report, *, alone: bool = False) -> dict[str, str]:
    """Every figure whose numbers are there."""
    drawings: dict[str, Callable[[Report, bool], str | None]] = {
        "accuracy": _accuracy,
        "loss": _loss,
        "reinforcement": _reinforcement,
        "health": _health,
        "load": _load,
    }
    drawn = {name: draw(report, alone) for name, draw in drawings.items()}
    return {name: svg for name, svg in drawn.items() if svg is not None}


def _accuracy(report: Report, alone: bool) -> str | None:
    """A row for all problems, each task and each language; a dot and its interval for each examined stage."""
    judged = {name: stage for name, stage in report["stages"].items() if "pass_at_1" in stage}
    if not judged:
        return None
    last = list(judged.values())[-1]
    rows: list[tuple[str, str | None, str | None]] = [("all problems", None, None)]
    rows += [(task.replace("_", " "), "by_task", task) for task in last.get("by_task", {})]
    rows += [(_language(lang), "by_lang", lang) for lang in last.get("by_lang", {})]
    many = len(judged) / 4  # how much room the dots of a row need, beside those of four stages
    with style("accuracy"):
        drawing, [panel] = figure(7.6, 0.75 + 0.34 * len(rows) * max(1, many))
        positions = _row_positions([group for _, group, _ in rows])
        for i, (name, stage) in enumerate(judged.items()):
            shift = (i - (len(judged) - 1) / 2) * 0.2 / max(1, many)
            for y, (_, group, key) in zip(positions, rows, strict=True):
                share = stage if group is None else stage.get(group, {}).get(key)
                if share is not None:
                    _dot(panel, y + shift, share, colour(name))
        panel.set_yticks(positions, [label for label, _, _ in rows])
        panel.tick_params(axis="y", labelcolor=colour("ink"))
        panel.set_ylim(positions[-1] + 0.5, -0.5)
        _key(panel, {stage_name(name): name for name in judged})
        panel.set_xlim(0, 100)
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:.0f} %")
        panel.grid(axis="y", visible=False)
        panel.spines[["left", "bottom"]].set_visible(False)
        return to_svg(drawing, "Share of problems answered right after each stage, with 95 % intervals", alone=alone)


def _dot(panel: Axes, y: float, share: Report, shade: str) -> None:
    value = share["pass_at_1"] if "pass_at_1" in share else share["value"]
    panel.plot([share["ci_low"] * 100, share["ci_high"] * 100], [y, y], color=shade, alpha=0.45, linewidth=2.6)
    panel.plot([value * 100], [y], "o", color=shade, markersize=5, markeredgewidth=0, clip_on=False)


def _key(panel: Axes, shades: dict[str, str]) -> None:
    """What the colours mean, in lines of up to four above the panel, where nothing can run into it."""
    handles = [Line2D([], [], color=colour(shade), linewidth=2.4) for shade in shades.values()]
    panel.legend(
        handles,
        list(shades),
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=len(shades) if len(shades) <= 4 else 3,
        frameon=False,
        borderpad=0,
        borderaxespad=0.4,
        handlelength=0.8,
        handletextpad=0.5,
        columnspacing=1.4,
        labelcolor=[colour(shade) for shade in shades.values()],
    )


def _row_positions(groups: list[str | None]) -> list[float]:
    """Rows one apart, with a gap where a group of rows begins."""
    positions: list[float] = []
    for i, group in enumerate(groups):
        gap = 0.35 if i and group != groups[i - 1] else 0.0
        positions.append(positions[-1] + 1 + gap if positions else 0.0)
    return positions


def _language(code: str) -> str:
    return {"en": "English", "fr": "French", "zh": "Chinese"}.get(code, code)


def _loss(report: Report, alone: bool) -> str | None:
    """Loss against seconds and against FLOPs, of the stages that learn from text."""
    drawn = {name: curve for name, curve in report["curves"].items() if "loss" in curve and "reward" not in curve}
    if not drawn:
        return None
    with style("loss"):
        drawing, panels = figure(7.6, 2.7, columns=2)
        axes: tuple[tuple[str, str, Callable[[float], str]], ...] = (
            ("time_s", "seconds", lambda x: f"{x:,.0f}"),
            ("flops", "model FLOPs", lambda x: words.flops(x, 2)),
        )
        for panel, (field, label, shown) in zip(panels, axes, strict=True):
            for name, curve in drawn.items():
                panel.plot(curve[field], curve["loss"], color=colour(name))
            panel.set_xlabel(label)
            panel.xaxis.set_major_locator(ticker.MaxNLocator(4))
            panel.xaxis.set_major_formatter(ticker.FuncFormatter(_one_argument(shown)))
            panel.set_ylim(0)
            panel.set_xlim(0)
            panel.grid(axis="x", visible=False)
        panels[0].set_ylabel("nats per token")
        _key(panels[0], {f"{stage_name(name)}, to {curve['loss'][-1]:.2f}": name for name, curve in drawn.items()})
        return to_svg(drawing, "Training loss against seconds and against model FLOPs", alone=alone)


def _one_argument(shown: Callable[[float], str]) -> Callable[[float, int | None], str]:
    """A formatter of ticks from a function of the value."""
    return lambda value, _: shown(value)


def _reinforcement(report: Report, alone: bool) -> str | None:
    """What reinforcement learning moved, a row for each of its stages: reward and pass rate, length, checks, levels."""
    stages = [stage for stage in report["curves"] if stage in REINFORCED]
    drawn = [stage for stage in stages if {"reward", "pass_rate"} <= report["curves"][stage].keys()]
    if not drawn:
        return None
    with style("reinforcement"):
        drawing, panels = figure(7.6, 2.6 * len(drawn), columns=1 + len(MOVED), rows=len(drawn))
        for stage in drawn:
            rewards, *moved = panels[: 1 + len(MOVED)]
            del panels[: 1 + len(MOVED)]
            curve = report["curves"][stage]
            _rewards(rewards, report, stage)
            for panel, (field, title) in zip(moved, MOVED.items(), strict=True):
                panel.set_title(title, fontsize=9)
                if field in curve:
                    panel.plot(curve["step"], curve[field], color=colour(stage))
            for panel in (rewards, *moved):
                panel.set_ylim(0)
                panel.set_xlabel("step")
                panel.grid(axis="x", visible=False)
                panel.xaxis.set_major_locator(ticker.MaxNLocator(3, integer=True))
        return to_svg(drawing, "Reward, length, checks and difficulty over reinforcement learning", alone=alone)


def _rewards(panel: Axes, report: Report, stage: str) -> None:
    curve = report["curves"][stage]
    panel.axhspan(*_band(report, stage), color=colour("rule"), alpha=0.35, linewidth=0)
    panel.plot(curve["step"], curve["reward"], color=colour("muted"), linewidth=1.1)
    panel.plot(curve["step"], curve["pass_rate"], color=colour(stage))
    shades = {"reward": "muted", "pass rate": stage}
    _key(panel, {**shades, **_test_accuracy(panel, report, stage, curve["step"])})


def _test_accuracy(panel: Axes, report: Report, stage: str, steps: list[int]) -> dict[str, str]:
    """Dots where the stage began and ended: accuracy on the test problems, which never change. Returns their key."""
    stages = list(report["stages"].values())
    at = list(report["stages"]).index(stage)
    before, after = (stages[at - 1] if at else {}), stages[at]
    ends = ((steps[0], before), (steps[-1], after))
    judged = [(step, stage["pass_at_1"]) for step, stage in ends if "pass_at_1" in stage]
    for step, accuracy in judged:
        panel.plot([step], [accuracy], "o", color=colour("ink"), markersize=5, markeredgewidth=0, clip_on=False)
    return {"test": "ink"} if judged else {}


def _band(report: Report, stage: str) -> tuple[float, float]:
    """Pass rates between which the curriculum keeps the training."""
    curriculum = (report["config"].get(stage) or {}).get("curriculum") or {}
    return curriculum.get("low", 0.2), curriculum.get("high", 0.8)


def _health(report: Report, alone: bool) -> str | None:
    """Signs that training is sound: the form, agreement of sampler and trainer, groups that teach nothing, signal."""
    curves = {stage: curve for stage, curve in report["curves"].items() if stage in REINFORCED}
    fields = [field for field in HEALTH if any(field in curve for curve in curves.values())]
    if not fields:
        return None
    with style("health"):
        drawing, panels = figure(7.6, 1.75, columns=len(fields))
        for panel, field in zip(panels, fields, strict=True):
            for stage, curve in curves.items():
                if field in curve:
                    panel.plot(curve["step"], curve[field], color=colour(stage), linewidth=1.2)
            panel.set_title(HEALTH[field], fontsize=8.5, color=colour("muted"))
            panel.set_ylim(min([0.0, *(value for curve in curves.values() for value in curve.get(field, []) if value)]))
            panel.grid(axis="x", visible=False)
            panel.xaxis.set_major_locator(ticker.MaxNLocator(3, integer=True))
            panel.yaxis.set_major_locator(ticker.MaxNLocator(3, integer=field == "flat_groups"))
        return to_svg(
            drawing, "Form, agreement of sampler and trainer, groups without variance, and signal", alone=alone
        )


def _load(report: Report, alone: bool) -> str | None:
    """A column for each moment, a row for each expert; coloured where an expert is far from its fair share."""
    load = report["load"]
    if load is None:
        return None
    layers = load["ratio_LES"][:MAX_LAYERS]
    n_columns = min(3, len(layers))
    n_rows = -(-len(layers) // n_columns)
    with style("load"):
        drawing, panels = figure(7.6, 0.4 + 1.7 * n_rows, columns=n_columns, rows=n_rows)
        for i, panel in enumerate(panels):
            if i >= len(layers):
                panel.set_visible(False)
                continue
            _paint(panel, layers[i])
            panel.set_title(f"routing layer {i + 1}", fontsize=9)
            panel.set_ylabel(f"{len(layers[i])} experts" if i % n_columns == 0 else "", fontsize=8)
            _moments(panel, load["stage"])
        return to_svg(drawing, "Load of each expert over time, relative to a fair share", alone=alone)


def _moments(panel: Axes, stages: list[str]) -> None:
    """Under the picture: where each stage begins."""
    starts = [i for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]
    panel.set_xticks(
        starts, ["RL" if stages[i] == "rl" else stage_name(stages[i]) for i in starts], ha="left", fontsize=8
    )
    for start in starts[1:]:
        panel.axvline(start, color=colour("ink"), linewidth=0.7, linestyle=(0, (2, 2)))
    panel.set_yticks([])
    panel.grid(visible=False)


def _paint(panel: Axes, ratio_ES: list[list[float]]) -> None:
    """One compound path a shade; equal neighbours in a row are one rectangle."""
    shades = [("low", 0.95), ("low", 0.6), ("low", 0.3), None, ("rl", 0.3), ("rl", 0.6), ("rl", 0.95)]
    boxes: dict[int, list[Path]] = {}
    for expert, row in enumerate(ratio_ES):
        level = [sum(value >= edge for edge in LEVELS) for value in row]
        start = 0
        for i in range(1, len(level) + 1):
            if i == len(level) or level[i] != level[start]:
                corners = [(start, expert), (i, expert), (i, expert + 1), (start, expert + 1), (start, expert)]
                boxes.setdefault(level[start], []).append(Path(corners, closed=True))
                start = i
    for level_index, paths in boxes.items():
        shade = shades[level_index]
        if shade is not None:
            compound = Path.make_compound_path(*paths)
            panel.add_patch(PathPatch(compound, facecolor=colour(shade[0]), alpha=shade[1], linewidth=0))
    panel.set_xlim(0, len(ratio_ES[0]))
    panel.set_ylim(len(ratio_ES), 0)
