"""The bill: ledger lines summed by stage. What the machine does not tell stays unknown, and is never taken for zero."""

from typing import Any

from sobre.report.run_files import Record


def bill(ledger: list[Record]) -> dict[str, Any]:
    """Rows in the order in which the stages first appear, their total, and the prices that hold."""
    names = dict.fromkeys(entry["stage"] for entry in ledger)
    rows = [_sum(name, [entry for entry in ledger if entry["stage"] == name]) for name in names]
    prices = dict.fromkeys((entry.get("price_usd_per_h"), entry.get("price_source")) for entry in ledger)
    return {
        "rows": rows,
        "total": _sum("total", ledger),
        "prices": [{"usd_per_h": price, "source": source} for price, source in prices],
    }


def _sum(stage: str, entries: list[Record]) -> Record:
    shares = [(e["share_of_peak"], e["wall_s"]) for e in entries if e.get("share_of_peak") is not None]
    weight = sum(seconds for _, seconds in shares)
    sources = dict.fromkeys(e.get("energy_source") or "unknown" for e in entries)
    return {
        "stage": stage,
        "wall_s": sum(e["wall_s"] for e in entries),
        "device_s": _total(entries, "device_s"),
        "tokens": _total(entries, "tokens"),
        "flops": _total(entries, "flops"),
        "share_of_peak": sum(share * seconds for share, seconds in shares) / weight if weight else None,
        "energy_j": _total(entries, "energy_j"),
        "energy_source": ", ".join(sources) or "unknown",
        "cost_usd": _total(entries, "cost_usd"),
        "wasted_s": _total(entries, "wasted_s"),
    }


def _total(entries: list[Record], name: str) -> float | None:
    """The sum, unknown as soon as one entry does not know."""
    values = [entry.get(name) for entry in entries]
    return None if not values or any(v is None for v in values) else sum(v for v in values if v is not None)
