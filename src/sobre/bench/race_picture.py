"""The picture of the race: quality against seconds, FLOPs, dollars and joules, with the bands of the seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from sobre.report.svg import colour, figure, style, to_svg

Point = Mapping[str, Any]
PANELS = (
    ("seconds", "seconds", "seconds"),
    ("flops", "flops", "model FLOPs"),
    ("seconds", "usd", "dollars"),
    ("seconds", "joules", "joules"),
)
"""(race, what it is set against, label)."""
SHADES = {
    "dense adamw": "muted",
    "dense muon": "ink",
    "deepseek-v3": "sft",
    "ours": "rl",
    "ours without tables": "rl",
    "dense with tables": "distill",
    "nanochat": "low",
}
DASHED = ("ours without tables",)


def picture(points: Sequence[Point], score: str) -> str:
    """An SVG of its own. A contestant with one rung is a point with its band, one with several a line."""
    panels = [panel for panel in PANELS if any(p["kind"] == panel[0] and panel[1] in p for p in points)]
    with style("race"):
        drawing, axes = figure(4.2 * len(panels), 3.4, columns=len(panels))
        for axis, (kind, measure, label) in zip(axes, panels, strict=True):
            _panel(axis, [p for p in points if p["kind"] == kind and measure in p], measure)
            axis.set_xlabel(label)
        axes[0].set_ylabel(score.partition(" ")[2])
        axes[0].legend(fontsize=8, frameon=False)
        return to_svg(drawing, f"{score} of every contestant against what it took", alone=True)


def _panel(axis: Axes, points: Sequence[Point], measure: str) -> None:
    axis.set_xscale("log")
    spent = [point[measure] for point in points]
    axis.set_xlim(min(spent) / 1.3, max(spent) * 1.3)
    for name in dict.fromkeys(point["contestant"] for point in points):
        mine = sorted((p for p in points if p["contestant"] == name), key=lambda p: p[measure])
        at, mean = [p[measure] for p in mine], [p["mean"] for p in mine]
        low, high = [p["lowest"] for p in mine], [p["highest"] for p in mine]
        shade = colour(SHADES[name])
        axis.plot(at, mean, "o", ls="--" if name in DASHED else "-", color=shade, ms=3.5, label=name)
        axis.vlines(at, low, high, color=shade, lw=1)
        axis.fill_between(at, low, high, color=shade, alpha=0.15, lw=0)
