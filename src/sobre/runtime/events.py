"""The log of decisions: whatever the clock decided stands in events.jsonl before it takes effect.

A resumed run replays the log instead of deciding again, so that the same events give the same weights. Replay holds up
to the last recorded step of a stage: before it the log alone speaks, silence included; at it, what is recorded there
speaks and what is missing is decided; after it everything is decided anew.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sobre.errors import RunError
from sobre.schemas import VERSION, lines

Choice = Mapping[str, Any] | None
"""What was chosen; None: no change."""
Choose = Callable[[], Choice]


@dataclass(frozen=True)
class Event:
    """One decision: in force from `step` of `stage` on, before that step runs."""

    stage: str
    step: int
    kind: str
    data: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": VERSION,
            "stage": self.stage,
            "step": self.step,
            "kind": self.kind,
            "data": dict(self.data),
        }


class EventLog:
    """Append-only, on the disk before `append` returns; a torn last line (never in effect) is dropped on opening.

    With several processes the first one decides and writes, and the others, whose `path` is None, are told: by
    `agree`, which is `Processes.decide`.
    """

    def __init__(self, path: Path | None, agree: Callable[[Choose], Choice] = lambda choose: choose()) -> None:
        self.path, self._agree = path, agree
        self._events: list[Event] = []
        self._index: dict[tuple[str, int, str], Event] = {}
        self._frontier: dict[str, int] = {}
        for number, record in enumerate(lines.repair(path) if path else [], start=1):
            try:
                event = Event(record["stage"], record["step"], record["kind"], record["data"])
            except KeyError as missing:
                raise RunError(f"{path}, line {number}: an event without {missing}") from None
            self._remember(event)

    def append(self, stage: str, step: int, kind: str, data: Mapping[str, Any]) -> Event:
        """Record a decision; it may take effect once this returns."""
        event = Event(stage, step, kind, data)
        if (stage, step, kind) in self._index:
            raise RunError(f"{self.path}: {kind!r} of {stage} at step {step} was decided before")
        if step < self.frontier(stage):
            raise RunError(f"{self.path}: {kind!r} of {stage} at step {step} comes after step {self.frontier(stage)}")
        if self.path is not None:
            lines.append(self.path, event.to_dict())
        self._remember(event)
        return event

    def decide(self, stage: str, step: int, kind: str, choose: Choose) -> Choice:
        """What holds from `step` on: replayed where the log reaches, else chosen now and recorded (None: no change)."""
        return self._agree(lambda: self._decide(stage, step, kind, choose))

    def _decide(self, stage: str, step: int, kind: str, choose: Choose) -> Choice:
        recorded = self._index.get((stage, step, kind))
        if recorded is not None:
            return recorded.data
        if step < self.frontier(stage):
            return None
        data = choose()
        return None if data is None else self.append(stage, step, kind, data).data

    def frontier(self, stage: str) -> int:
        """Last step of `stage` that has an event; -1 when it has none."""
        return self._frontier.get(stage, -1)

    def events(self, stage: str | None = None, kind: str | None = None) -> list[Event]:
        """In the order written, of one stage and one kind if asked."""
        return [e for e in self._events if stage in (None, e.stage) and kind in (None, e.kind)]

    def _remember(self, event: Event) -> None:
        self._events.append(event)
        self._index[event.stage, event.step, event.kind] = event
        self._frontier[event.stage] = max(event.step, self.frontier(event.stage))
