"""Matplotlib figures as SVG that belongs to the page: its fonts, its colours in light and dark, few bytes.

Matplotlib draws with placeholder colours; afterwards each becomes a CSS variable of the page (`var(--rl)`), or, for a
picture that stands alone, a colour of the light palette. Text stays text. No time, no random ids: the same data gives
the same bytes.
"""

import io
import re
from contextlib import AbstractContextManager
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

PALETTE = {
    "ink": ("#010101", "#1f1d1a"),
    "muted": ("#020202", "#77716a"),
    "rule": ("#030303", "#dfd9cf"),
    "paper": ("#040404", "#fdfcf9"),
    "pretrain": ("#050505", "#8d867b"),
    "sft": ("#060606", "#b9822b"),
    "rl": ("#070707", "#1b6e79"),
    "distill": ("#080808", "#7a5a92"),
    "low": ("#090909", "#b4553d"),
    "sft2": ("#0a0a0a", "#d7a95a"),
    "rl2": ("#0b0b0b", "#4c9aa5"),
    "dpo": ("#0c0c0c", "#5d7f4a"),
}
"""Name: the placeholder that matplotlib draws with, and the colour on a light page."""
RC = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "axes.edgecolor": PALETTE["rule"][0],
    "axes.labelcolor": PALETTE["muted"][0],
    "axes.titlecolor": PALETTE["ink"][0],
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALETTE["rule"][0],
    "grid.linewidth": 0.6,
    "xtick.color": PALETTE["rule"][0],
    "ytick.color": PALETTE["rule"][0],
    "xtick.labelcolor": PALETTE["muted"][0],
    "ytick.labelcolor": PALETTE["muted"][0],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": PALETTE["ink"][0],
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "path.simplify_threshold": 0.4,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def colour(name: str) -> str:
    """The placeholder of a palette name; a stage without a colour of its own is drawn in ink."""
    return PALETTE.get(name, PALETTE["ink"])[0]


def figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of `width` x `height` inches with its panels in reading order. Call inside `style()`."""
    drawing = Figure(figsize=(width, height), layout="constrained")
    return drawing, list(drawing.subplots(rows, columns, squeeze=False).flat)


def style(name: str) -> AbstractContextManager[None]:
    """Context in which figures are drawn; `name` seeds the ids inside the SVG, so that figures of one page differ."""
    settings: dict[str, Any] = {**RC, "svg.hashsalt": f"sobre-{name}"}
    return matplotlib.rc_context(cast(Any, settings))


def to_svg(drawing: Figure, title: str, *, alone: bool = False) -> str:
    """The figure as an <svg> element. `alone` resolves the colours and keeps the size, for a file of its own."""
    buffer = io.StringIO()
    FigureCanvasSVG(drawing).print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    text = re.sub(r' (d|x|y|transform|points)="[^"]*"', lambda match: _rounded(match[0]), text)
    for name, (placeholder, light) in PALETTE.items():
        text = text.replace(placeholder, light if alone else f"var(--{name})")
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    head = f'<svg role="img" aria-label="{label}" '
    if alone:
        return text.replace("<svg ", head + 'font-family="Helvetica, Arial, sans-serif" ', 1)
    opening, rest = text.split(">", 1)
    opening = re.sub(r' (width|height|xmlns(:xlink)?|version)="[^"]*"', "", opening)
    return opening.replace("<svg ", head, 1) + ">" + rest.rstrip()


def _rounded(attribute: str) -> str:
    """Coordinates to a hundredth of a point: half the bytes, no difference to the eye."""
    return re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), attribute)
