"""The end of `sobre run` in the terminal: accuracy stage by stage, one problem solved aloud, the bill, what next.

Pure: report.json in, something that rich can print out. Thoughts are dimmed, answers plain.
"""

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sobre.report import claims, words

Report = dict[str, Any]
KINDS = ("became right", "right", "stayed right", "stayed wrong", "wrong", "became wrong")
"""Which sample is shown: the first of the first kind that there is."""
WIDEST_THOUGHT = 16
"""Lines of a thought that are shown; the rest is counted."""
WIDEST_TABLE = 3
"""Stages whose full names fit side by side; more go by the recipe's names, which are short."""


def story(report: Report, run_dir: Path) -> RenderableType:
    """Everything that is said at the end of a run."""
    parts = [
        Text(claims.headline(report), style="bold"),
        _accuracy(report),
        _gain(report),
        *(Text(line, style="bold red") for line in report["signs"]),
        _bits(report),
        _sample(report),
        _bill(report),
        *(Text(line, style="dim") for line in claims.prices(report)),
        _next(report, run_dir),
    ]
    blocks = [part for part in parts if part is not None]
    return Group(*(Padding(block, (0, 0, 1, 0)) for block in blocks))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _accuracy(report: Report) -> Table | None:
    judged = {name: stage for name, stage in report["stages"].items() if "pass_at_1" in stage}
    if not judged:
        return None
    names = list(judged) if len(judged) > WIDEST_TABLE else [claims.stage_name(name) for name in judged]
    table = _table("test problems right", *names)
    table.add_row("all", *(claims.accuracy(stage) for stage in judged.values()), style="bold")
    last = list(judged.values())[-1]
    for group in ("by_task", "by_lang"):
        for key in last.get(group, {}):
            shares = [stage.get(group, {}).get(key) for stage in judged.values()]
            table.add_row(key, *(words.percent(share["value"]) if share else "–" for share in shares))
    return table


def _gain(report: Report) -> Text | None:
    found = [report["data"] or {}, *claims.records(report).values()]
    overlap = any((each.get("test_overlap") or {}).get("count") for each in found)
    said = [claims.gain(report), claims.unseen(report) if overlap else None]
    return Text(" ".join(line for line in said if line)) if any(said) else None


def _bits(report: Report) -> Table | None:
    if not report["bits_per_byte"]:
        return None
    table = _table("held-out text", "bits per byte")
    for source, value in report["bits_per_byte"].items():
        table.add_row(source, f"{value:.3f}")
    for name, value in report["baselines"].items():
        table.add_row(name, f"{value:.3f}", style="dim")
    return table


def _sample(report: Report) -> Group | None:
    """One problem solved aloud by the last model."""
    chosen = report["samples"]["chosen"]
    if not chosen:
        return None
    sample = min(chosen, key=lambda s: KINDS.index(s["kind"]))
    after = sample["after"]
    thought = words.visible(after["thought"]).split("\n")
    lines = [Text(sample["prompt"], style="bold")]
    lines += [Text(f"  {line}", style="dim") for line in thought[:WIDEST_THOUGHT]]
    if len(thought) > WIDEST_THOUGHT:
        lines.append(Text(f"  ... {len(thought) - WIDEST_THOUGHT} more lines", style="dim"))
    answer = words.visible(after["extracted"] or after["response"] or "(no answer)")
    verdict = ("right", "green") if after["right"] else (f"wrong; right would be {sample['answer']}", "red")
    lines.append(Text.assemble(answer, "  ", verdict))
    return Group(*lines)


def _bill(report: Report) -> Table | None:
    rows = report["bill"]["rows"]
    if not rows:
        return None
    total = report["bill"]["total"]
    all_estimated = total["energy_source"] == "estimated"
    energy = "energy, estimated" if all_estimated else "energy"
    table = _table("the bill", "time", "tokens", "arithmetic", "of peak", energy, "cost")
    for row in [*rows, total]:
        table.add_row(
            row["stage"],
            words.duration(row["wall_s"]),
            words.number(row["tokens"]),
            words.flops(row["flops"]),
            words.percent(row["share_of_peak"]) if row["share_of_peak"] is not None else "–",
            words.energy(row["energy_j"]) if all_estimated else claims.energy(row),
            words.usd_like(row["cost_usd"], total["cost_usd"]),
            style="bold" if row is total else "",
        )
    if total["wasted_s"]:
        table.caption = f"{words.duration(total['wasted_s'])} of it wasted: lost in a kill, or rollouts thrown away"
        table.caption_justify = "left"
    return table


def _next(report: Report, run_dir: Path) -> Group:
    made = [name for name, stage in report["stages"].items() if stage["metrics"]["steps"] or "pass_at_1" in stage]
    names = [name for name in made if name != "start"]
    model = run_dir / ("base" if names[-1:] == ["pretrain"] else names[-1]) if names else run_dir
    commands = Table(box=None, pad_edge=False, show_header=False)
    commands.add_column()
    commands.add_column(overflow="fold")  # what is to be typed is shown whole
    commands.add_row("the report", str(run_dir / "report.html"))
    if names and names[-1] != "pretrain":
        commands.add_row("ask it something", f"sobre chat {model}")
    commands.add_row("serve it", f"sobre serve {model}")
    return Group(Text("What next", style="bold"), commands)
