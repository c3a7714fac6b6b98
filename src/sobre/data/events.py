"""What happened to the records: every kind counted, the first few named, bad ones refused if the recipe says so."""

from dataclasses import dataclass, field
from typing import Any, Literal

from sobre.errors import DataError

N_NAMED = 5


@dataclass
class Event:
    """One kind of thing that happened."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    """Where, and what, for the first few."""

    def add(self, what: str) -> None:
        self.count += 1
        if self.count <= N_NAMED:
            self.first.append(what)


class Events:
    """The record of one reading. `bad` records are left out (or refused); `notes` are things that did no harm."""

    def __init__(self, on_bad_record: Literal["refuse", "count"] = "refuse") -> None:
        self.on_bad_record = on_bad_record
        self.bad: dict[str, Event] = {}
        self.notes: dict[str, Event] = {}

    def reject(self, kind: str, where: str, reason: str, fits: str) -> None:
        """Leave a record out, or stop: raises DataError when bad records are refused."""
        if self.on_bad_record == "refuse":
            raise DataError(
                f'{where}: {reason}; what fits: {fits} (or data.on_bad_record = "count" to leave such records out)'
            )
        self.bad.setdefault(kind, Event()).add(f"{where}: {reason}")

    def note(self, kind: str, what: str) -> None:
        """Count something that changes no document."""
        self.notes.setdefault(kind, Event()).add(what)

    @property
    def n_bad(self) -> int:
        return sum(event.count for event in self.bad.values())

    def to_json(self) -> dict[str, Any]:
        """For the run's report."""
        return {
            name: {kind: vars(event) for kind, event in sorted(events.items())}
            for name, events in (("bad_records", self.bad), ("notes", self.notes))
        }
