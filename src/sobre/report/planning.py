"""The page of `sobre plan page`: one planned run in pictures, and the model of time beside published runs."""

from collections.abc import Sequence
from html import escape
from importlib import resources

from matplotlib.axes import Axes

from sobre.plan.layout import Layout
from sobre.plan.schedule import Durations, Placed, order, simulate
from sobre.plan.train import TrainingPlan
from sobre.plan.validate import Validation
from sobre.report.svg import colour, figure, style, to_svg

PART_COLOURS = ("pretrain", "sft", "rl", "distill", "low")
NAMES = {
    "matrices": "matrix products",
    "elementwise": "norms, gates, casts",
    "tensor": "sums between tensor-parallel chips",
    "all_to_all": "tokens to experts and back",
    "data": "gradients and weights between chips",
    "bubble": "waiting in the pipeline",
    "lost": "stragglers, restarts, checkpoints",
}
"""Parts of a step in words; the others are called what they are."""
MOST_CHIPS = 8
"""Chips of a pipeline that the timeline shows."""


def page(plan: TrainingPlan, found: Validation) -> str:
    """The page as text."""
    css = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    price = plan.cost_usd
    facts = [
        ("parameters", f"{plan.model.total:,}"),
        ("active for a token", f"{plan.model.active:,}"),
        ("FLOPs of a trained token", f"{plan.flops_per_token / 1e9:,.4g} G"),
        ("tokens", _short(plan.tokens)),
        ("chips", f"{plan.chips:,} {plan.chip.name}"),
        ("layout", str(plan.layout)),
        ("chip-hours", f"{plan.gpu_hours:,.0f}"),
        ("days", f"{plan.days:,.1f}"),
        ("dollars", "no price for this chip" if price is None else f"{price:,.0f}"),
        ("energy, estimated", f"{plan.energy_kwh:,.0f} kWh"),
        (f"share of the {'32' if plan.chip.usual == 'fp32' else '16'}-bit peak", f"{plan.mfu:.1%}"),
    ]
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts)
    late = found.spread(left_out=True, since=2024)
    every = found.spread(left_out=True)
    unit = "hours of chips" if price is None else "dollars"
    sections = [
        (f"Where the {unit} go", _bars(plan), "Parts of a training step, over the whole run."),
        ("What a chip holds", _memory(plan), f"Peak on the fullest chip, as shares of its {plan.chip.memory_gb:g} GB."),
    ]
    if plan.layout.pipeline > 1:
        stages = f"{_shown(plan.layout)} of its {plan.layout.pipeline} stages"
        note = f"The schedule with {stages} and few micro-batches, played out; blank is waiting."
        sections.append(("Who computes when", _timeline(plan.layout), note))
    sections.append(
        (
            "Predicted against published",
            _scatter(found),
            f"Chip-hours of {every['n']} scored runs, each predicted with constants fitted without it: median"
            f" error {every['median']:.1%}, {late['median']:.1%} since 2024, the worst {every['worst']:.2f} times."
            " Red is 2024 and later; hollow dots are runs whose hours or tokens do not measure plain pretraining."
            " The lines beside the middle are a quarter off.",
        )
    )
    body = "".join(
        f"<section><h2>{escape(title)}</h2><figure>{svg}<figcaption>{escape(note)}</figcaption></figure></section>"
        for title, svg, note in sections
    )
    title = f"What {plan.model.name} costs to train"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{css}</style></head><body><main><h1>{escape(title)}</h1>"
        f'<table class="facts"><tbody>{rows}</tbody></table>{body}</main></body></html>\n'
    )


def _bars(plan: TrainingPlan) -> str:
    whole = plan.gpu_hours if plan.cost_usd is None else plan.cost_usd
    parts = {name: value / plan.step_s * whole for name, value in plan.parts.items() if value > 0.002 * plan.step_s}
    named = {NAMES.get(name, name): value for name, value in parts.items()}
    return _horizontal("money", named, whole, "h" if plan.cost_usd is None else "usd")


def _memory(plan: TrainingPlan) -> str:
    parts = {name: value / 1e9 for name, value in plan.memory.items()}
    return _horizontal("memory", parts, plan.chip.memory_gb, "GB")


def _horizontal(name: str, parts: dict[str, float], whole: float, unit: str) -> str:
    ordered = sorted(parts.items(), key=lambda item: item[1])
    with style(name):
        drawing, [panel] = figure(7.6, 0.6 + 0.3 * len(ordered))
        for y, (_, value) in enumerate(ordered):
            panel.barh(y, value, height=0.62, color=colour("rl"))
            text = f"{_short(value)} {unit}, {value / whole:.0%}"
            panel.annotate(
                text, (value, y), xytext=(4, 0), textcoords="offset points", va="center", color=colour("ink")
            )
        panel.set_yticks(range(len(ordered)), [part for part, _ in ordered])
        panel.tick_params(axis="y", labelcolor=colour("ink"))
        panel.set_xlim(0, max(parts.values()) * 1.22)
        _bare(panel)
        return to_svg(drawing, name)


def _timeline(layout: Layout) -> str:
    chips = _shown(layout)
    micro = {"dualpipe": 2 * chips + 4, "dualpipev": 2 * chips + 2}.get(layout.schedule, 2 * chips)
    chunks = min(layout.chunks, 3)
    per_chip = {"interleaved": chunks, "dualpipev": 2}.get(layout.schedule, 1)
    placed = simulate(order(layout.schedule, chips, micro, chunks), chips * per_chip, Durations(), per_chip)
    with style("timeline"):
        drawing, [panel] = figure(7.6, 0.7 + 0.27 * chips)
        kinds: Sequence[tuple[str, str, str]] = (
            ("F", "rl", "forward"),
            ("BD", "sft", "backward"),
            ("W", "pretrain", "weights"),
        )
        for letters, tone, word in kinds:
            pieces = [piece for piece in placed if piece.work.kind in letters]
            if pieces:
                _draw(panel, pieces, colour(tone), word)
        panel.set_yticks(range(chips), [f"chip {i}" for i in range(chips)])
        panel.set_ylim(chips - 0.4, -0.6)
        panel.set_xlim(0, max(piece.end for piece in placed))
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=3, frameon=False, fontsize=8.5)
        _bare(panel)
        return to_svg(drawing, "timeline of the pipeline")


def _shown(layout: Layout) -> int:
    """Stages of the timeline: an even number, which every schedule can play."""
    chips = min(layout.pipeline, MOST_CHIPS)
    return chips - chips % 2


def _draw(panel: Axes, pieces: list[Placed], tone: str, word: str) -> None:
    """Bars of one kind, one collection a chip."""
    for chip in sorted({piece.chip for piece in pieces}):
        spans = [(piece.start, piece.end - piece.start) for piece in pieces if piece.chip == chip]
        label = word if chip == pieces[0].chip else None
        panel.broken_barh(
            spans, (chip - 0.38, 0.76), facecolors=tone, edgecolors=colour("paper"), label=label, linewidth=0.6
        )


def _scatter(found: Validation) -> str:
    with style("published"):
        drawing, [panel] = figure(7.6, 5.0)
        low, high = 1e1, 1e8
        panel.plot([low, high], [low, high], color=colour("muted"), linewidth=0.8)
        for factor in (1.25, 1 / 1.25):
            panel.plot([low, high], [low * factor, high * factor], color=colour("rule"), linewidth=0.8)
        for row in found.rows:
            scored = row.left_out is not None
            predicted = row.run.hours * (1 + row.left_out) if row.left_out is not None else row.predicted
            recent = row.run.year >= 2024
            tone = colour("low" if recent else "rl")
            panel.plot(
                row.run.hours, predicted, "o", markersize=5.5, markeredgecolor=tone, markeredgewidth=1.0,
                markerfacecolor=tone if scored else "none", alpha=1.0 if scored else 0.6,
            )  # fmt: skip
        for name in ("deepseek-v3", "llama-3.1-405b", "llama-2-70b", "pythia-70m", "bloomberg-50b"):
            row = next(row for row in found.rows if row.run.name == name)
            at = (row.run.hours, row.run.hours * (1 + (row.left_out or 0.0)))
            place, side = ((-7, 5), "right") if name == "llama-2-70b" else ((7, -9), "left")  # another dot is near
            panel.annotate(
                name, at, xytext=place, textcoords="offset points", ha=side, fontsize=8, color=colour("muted")
            )
        panel.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        panel.set_xlabel("published chip-hours")
        panel.set_ylabel("predicted chip-hours")
        return to_svg(drawing, "predicted against published chip-hours")


def _bare(panel: Axes) -> None:
    panel.set_xticks([])
    panel.grid(visible=False)
    panel.spines[["left", "bottom"]].set_visible(False)


def _short(value: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
