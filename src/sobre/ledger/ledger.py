"""The bill: one line for each part of a run, on the disk before the call returns. No second is ever taken off it.

An entry stands for the steps [step_from, step_to) of a stage, and that triple is its identity: appending it again does
nothing. So the order that loses nothing and doubles nothing is: save the state with the entry inside it, append the
entry; after a kill, append the entry of the state that is resumed. Steps that were lost to a kill are made again under
the same identity; the seconds they cost the first time are an entry of their own, all of it waste. Where a saved state
is damaged and a run goes on from the one before, the entries between the two become such waste (`undo`).
"""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from sobre.errors import RunError
from sobre.ledger.prices import Price
from sobre.schemas import VERSION, lines

EnergySource = Literal["measured", "estimated", "unknown"]
LOST = "lost"
"""Stage of the entries of what is not in the result: what was done for nothing, and what stood still."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of ledger.jsonl."""

    stage: str
    step_from: int
    step_to: int
    wall_s: float
    """All seconds of the part, waste included."""
    device_s: float
    """Seconds times devices."""
    tokens: int
    """Tokens trained on or sampled."""
    flops: float
    """Model FLOPs."""
    share_of_peak: float | None
    """FLOPs per device-second over the measured peak of the device; none where the peak is unknown."""
    energy_j: float | None
    energy_source: EnergySource
    cost_usd: float
    price_usd_per_h: float
    price_source: str
    wasted_s: float
    """The part of wall_s that bought nothing: lost steps, rollouts thrown away."""

    def __post_init__(self) -> None:
        where = f"ledger entry {self.stage} {self.step_from}..{self.step_to}"
        if not 0 <= self.step_from <= self.step_to:
            raise RunError(f"{where}: steps must be 0 or more and in order")
        for name in ("wall_s", "device_s", "tokens", "flops", "cost_usd", "price_usd_per_h", "wasted_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise RunError(f"{where}: {name}={getattr(self, name)} must be finite and 0 or more")
        if self.wasted_s > self.wall_s:
            raise RunError(f"{where}: wasted_s={self.wasted_s} exceeds wall_s={self.wall_s}")
        if (self.energy_j is None) != (self.energy_source == "unknown"):
            raise RunError(f"{where}: energy_j={self.energy_j} does not fit energy_source={self.energy_source!r}")

    @property
    def key(self) -> tuple[str, int, int]:
        return self.stage, self.step_from, self.step_to

    def to_dict(self) -> dict[str, Any]:
        return {"schema": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Entry":
        names = {field.name for field in fields(cls)}
        if set(record) - {"schema"} != names or record.get("schema") != VERSION:
            wrong = sorted(names.symmetric_difference(set(record) - {"schema"})) or [f"schema={record.get('schema')}"]
            raise RunError(f"not a ledger entry of schema {VERSION}: {', '.join(wrong)}")
        return cls(**{name: record[name] for name in names})


@dataclass(frozen=True)
class Total:
    """Sums over entries."""

    wall_s: float
    device_s: float
    tokens: int
    flops: float
    energy_j: float | None
    """None as soon as one entry's energy is unknown."""
    energy_source: EnergySource
    """The weakest of the entries' sources."""
    cost_usd: float
    wasted_s: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Ledger:
    """The file of entries; opening it repairs a torn last line without losing a whole one. None keeps no file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._entries: dict[tuple[str, int, int], Entry] = {}
        for number, record in enumerate(lines.repair(path) if path else [], start=1):
            try:
                entry = Entry.from_dict(record)
            except (RunError, TypeError) as error:
                raise RunError(f"{path}, line {number}: {error}") from None
            self._entries[entry.key] = entry

    def append(self, entry: Entry) -> bool:
        """Write the entry and wait for the disk; False if its steps stand there already."""
        if entry.key in self._entries:
            return False
        for there in self._entries.values():
            if there.stage == entry.stage and max(there.step_from, entry.step_from) < min(there.step_to, entry.step_to):
                raise RunError(
                    f"{self.path}: steps {entry.step_from}..{entry.step_to} of {entry.stage} overlap with"
                    f" {there.step_from}..{there.step_to}, which are paid already"
                )
        if self.path is not None:
            lines.append(self.path, entry.to_dict())
        self._entries[entry.key] = entry
        return True

    def undo(self, stage: str, step: int) -> float:
        """Make waste of all that is paid for steps of `stage` from `step` on, which will be done again; its seconds."""
        undone = [entry for entry in self.entries(stage) if entry.step_to > step]
        for entry in undone:
            del self._entries[entry.key]
        for number, entry in enumerate(undone, start=len(self.entries(LOST))):
            share = None if entry.share_of_peak is None else 0.0
            waste = replace(entry, stage=LOST, step_from=number, step_to=number, wasted_s=entry.wall_s)
            waste = replace(waste, tokens=0, flops=0.0, share_of_peak=share)
            self._entries[waste.key] = waste
        if undone and self.path is not None:
            lines.rewrite(self.path, *(entry.to_dict() for entry in self.entries()))
        return sum(entry.wall_s for entry in undone)

    def entries(self, stage: str | None = None) -> list[Entry]:
        """In the order written, of one stage if asked."""
        return [entry for entry in self._entries.values() if stage in (None, entry.stage)]

    def stages(self) -> list[str]:
        """In the order of their first entries."""
        return list(dict.fromkeys(entry.stage for entry in self._entries.values()))

    def total(self, stage: str | None = None) -> Total:
        """The sum of all entries, or of one stage's."""
        return _sum(self.entries(stage))


def bill(
    stage: str,
    steps: tuple[int, int],
    *,
    wall_s: float,
    tokens: int,
    flops: float,
    price: Price,
    n_devices: int = 1,
    peak_flops: float | None = None,
    energy: tuple[float | None, EnergySource] = (None, "unknown"),
    wasted_s: float = 0.0,
) -> Entry:
    """Make an entry from what was measured: `peak_flops` is one device's measured peak, `price` the machine's."""
    device_s = wall_s * n_devices
    return Entry(
        stage=stage,
        step_from=steps[0],
        step_to=steps[1],
        wall_s=wall_s,
        device_s=device_s,
        tokens=tokens,
        flops=flops,
        share_of_peak=flops / (device_s * peak_flops) if peak_flops and device_s else None,
        energy_j=energy[0],
        energy_source=energy[1],
        cost_usd=price.usd(wall_s),
        price_usd_per_h=price.usd_per_h,
        price_source=price.source,
        wasted_s=wasted_s,
    )


def _sum(entries: list[Entry]) -> Total:
    sources: set[EnergySource] = {entry.energy_source for entry in entries}
    known = bool(entries) and "unknown" not in sources
    weakest: EnergySource = "unknown" if not known else "estimated" if "estimated" in sources else "measured"
    return Total(
        wall_s=sum(entry.wall_s for entry in entries),
        device_s=sum(entry.device_s for entry in entries),
        tokens=sum(entry.tokens for entry in entries),
        flops=sum(entry.flops for entry in entries),
        energy_j=sum(entry.energy_j or 0.0 for entry in entries) if known else None,
        energy_source=weakest,
        cost_usd=sum(entry.cost_usd for entry in entries),
        wasted_s=sum(entry.wasted_s for entry in entries),
    )
