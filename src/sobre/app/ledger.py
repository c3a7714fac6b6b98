"""sobre ledger DIR: what did a run cost? One row for each part, and the sum."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from sobre.config.load import load
from sobre.errors import RunError
from sobre.ledger.ledger import Ledger, Total
from sobre.ledger.prices import GRID_KG_PER_KWH, co2_kg
from sobre.schemas import VERSION


@dataclass(frozen=True)
class LedgerOptions:
    """Flags of `sobre ledger`."""

    run: tyro.conf.Positional[str]
    """Folder of a run."""
    json: bool = False
    """One JSON document on standard output."""


def main(argv: list[str]) -> int:
    """Read ledger.jsonl and add it up."""
    options = load(LedgerOptions, argv, recipes=None, prog="sobre ledger")
    path = Path(options.run) / "ledger.jsonl"
    if not path.is_file():
        raise RunError(f"{options.run} has no ledger.jsonl; a run folder has one from its first part on")
    ledger = Ledger(path)
    rows = {stage: ledger.total(stage) for stage in ledger.stages()} | {"total": ledger.total()}
    whole = rows["total"]
    carbon = None if whole.energy_j is None else co2_kg(whole.energy_j)
    if options.json:
        parts = {name: total.to_dict() for name, total in rows.items()}
        document = {"schema": VERSION, "parts": parts, "co2_kg": carbon, "grid_kg_per_kwh": GRID_KG_PER_KWH}
        print(json.dumps(document))
        return 0
    print(f"{'part':<15} {'seconds':>9} {'wasted':>8} {'tokens':>12} {'FLOP':>10} {'joules':>9} {'usd':>10}")
    for name, total in rows.items():
        print(_row(name, total))
    entry = ledger.entries()[-1]
    print(f"at {entry.price_usd_per_h:g} usd an hour: {entry.price_source}")
    if whole.wall_s:
        print(
            f"wasted: {whole.wasted_s / whole.wall_s:.1%} of the seconds (steps lost in a kill, rollouts thrown away)"
        )
    if carbon is not None:
        print(f"{carbon:.3g} kg CO2 at {GRID_KG_PER_KWH} kg/kWh, the world's mean grid; joules {whole.energy_source}")
    return 0


def _row(name: str, total: Total) -> str:
    joules = "unknown" if total.energy_j is None else f"{total.energy_j:,.0f}"
    return (
        f"{name:<15} {total.wall_s:>9,.1f} {total.wasted_s:>8,.1f} {total.tokens:>12,} {total.flops:>10.3g}"
        f" {joules:>9} {total.cost_usd:>10.6f}"
    )
