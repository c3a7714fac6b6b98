"""report.html: one self-contained page, no script, from report.json alone.

The template holds the order and the prose; what needs arithmetic is prepared here. Everything that comes from a model
or from data is escaped by the template engine.
"""

import json
from importlib import resources
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup

from sobre.report import claims, words
from sobre.report.figures import draw_all

Report = dict[str, Any]
CITE = {"became right": "was wrong, is right", "became wrong": "was right, is wrong"}


def render(report: Report) -> str:
    """The page as text."""
    folder = resources.files(__package__)
    environment = Environment(
        loader=BaseLoader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "visible": words.visible,
        "number": words.number,
        "flops": words.flops,
        "duration": words.duration,
        "percent": words.percent,
        "usd": words.usd,
        "usd_like": words.usd_like,
        "stage": claims.stage_name,
        "work": claims.stage_work,
        "accuracy": claims.accuracy,
        "energy": claims.energy,
    }
    judged = {name: stage for name, stage in report["stages"].items() if "pass_at_1" in stage}
    template = environment.from_string(folder.joinpath("page.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        r=report,
        css=Markup(folder.joinpath("page.css").read_text(encoding="utf-8")),
        figures={name: Markup(svg) for name, svg in draw_all(report).items()},
        headline=claims.headline(report),
        gain=claims.gain(report),
        unseen=claims.unseen(report),
        taught=claims.taught(report),
        prices=[claims.carbon(report["bill"]["rows"]), *claims.prices(report)],
        shares=_shares(report),
        judged=judged,
        sampled=next((stage["sampled"] for stage in judged.values() if "sampled" in stage), None),
        plan_rows=_plan_rows(report),
        facts_of_data=[
            *_flat(report["data"] or {}, leave_out=("schema", "generated")),
            *_flat(claims.records(report), leave_out=()),
        ],
        facts_of_machine=_flat(report["environment"] or {}, leave_out=("schema",)),
        bits=_bits(report),
        config=json.dumps(report["config"], indent=2, ensure_ascii=False),
        kinds=CITE,
        generated=claims.GENERATED,
        small=claims.SMALL,
    )


def _shares(report: Report) -> list[Report]:
    """The bill's rows as shares of the wall time, for the bar above the table."""
    total = report["bill"]["total"]["wall_s"]
    rows = report["bill"]["rows"]
    return [{"stage": row["stage"], "share": row["wall_s"] / total} for row in rows] if total else []


def _plan_rows(report: Report) -> list[Report]:
    """Planned against spent, for each stage that the plan names."""
    stages = (report["plan"] or {}).get("stages") or {}
    spent = {row["stage"]: row for row in report["bill"]["rows"]}
    return [
        {
            "stage": name,
            "planned_s": planned.get("seconds"),
            "spent_s": spent.get(name, {}).get("wall_s"),
            "planned_tokens": planned.get("tokens"),
            "spent_tokens": spent.get(name, {}).get("tokens"),
        }
        for name, planned in stages.items()
    ]


def _bits(report: Report) -> list[tuple[str, float, str]]:
    """Bits per byte and the baselines, smallest first: name, value, css class."""
    rows = [(f"this model, {name} text", value, "ours") for name, value in report["bits_per_byte"].items()]
    rows += [(name, value, "baseline") for name, value in report["baselines"].items()]
    return sorted(rows, key=lambda row: row[1])


def _flat(document: Report, *, leave_out: tuple[str, ...], at: str = "") -> list[tuple[str, str]]:
    """Nested facts as rows of a table: dotted name, value as text."""
    rows: list[tuple[str, str]] = []
    for key, value in document.items():
        name = f"{at} · {key}" if at else key
        if key in leave_out:
            continue
        if isinstance(value, dict):
            rows += _flat(value, leave_out=leave_out, at=name.replace("_", " "))
        else:
            rows.append((name.replace("_", " "), _text(value)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value) or "none"
    return words.UNKNOWN if value is None else str(value)
