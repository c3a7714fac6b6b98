"""metrics.jsonl: one line for each step that says something, appended in groups.

A line is lost only with its step: `flush` goes before every saved state, and a resumed run cuts off what lies beyond
the state that it goes on from, so that no step stands in the file twice.
"""

import math
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sobre.errors import RunError
from sobre.runtime.sinks import Sink, numbers
from sobre.schemas import VERSION, lines

FLUSH_S = 2.0
"""Longest time that a line waits in memory: a report on a running run is this late at most."""


class Metrics:
    """Example: metrics.add("sft", 41, loss=1.23, tokens=8192); `step` counts from 0, the step that ran."""

    def __init__(self, path: Path | None, sinks: Sequence[Sink] = ()) -> None:
        self.path, self.sinks = path, sinks
        if path is not None:
            lines.repair(path)
        self._waiting: list[dict[str, Any]] = []
        self._flushed_at = time.monotonic()

    def add(self, stage: str, step: int, **values: Any) -> None:
        """Remember a line of JSON values; numbers must be finite, and what has no value is None."""
        for name, value in values.items():
            if not _is_finite(value):
                raise RunError(f"metric {name}={value} of {stage} at step {step} is not finite")
        self._waiting.append({"schema": VERSION, "stage": stage, "step": step, **values})
        for sink in self.sinks:
            sink.add(stage, step, dict(numbers(values)))
        if time.monotonic() - self._flushed_at > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Put everything on the disk."""
        if self.path is not None:
            lines.append(self.path, *self._waiting)
        for sink in self.sinks:
            sink.flush()
        self._waiting = []
        self._flushed_at = time.monotonic()

    def cut(self, done: Collection[str], stage: str, step: int) -> int:
        """Drop the lines of steps that will run again: from `step` of `stage` on, and of stages that are not `done`."""
        if self.path is None or not self.path.exists():
            return 0
        kept_bytes, kept, records = 0, 0, lines.read(self.path)
        for record in records:
            before = record["stage"] == stage and record["step"] < step
            if not before and record["stage"] not in done:
                break
            kept_bytes, kept = kept_bytes + len(lines.encode(record)), kept + 1
        with self.path.open("r+b") as file:
            file.truncate(kept_bytes)
            lines.flush(file.fileno())
        return len(records) - kept


def read_metrics(path: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """The lines on the disk, of one stage if asked."""
    return [record for record in lines.read(path) if stage in (None, record["stage"])]


def _is_finite(value: Any) -> bool:
    """Whether no number in the value is NaN or infinite."""
    if isinstance(value, dict):
        return all(_is_finite(item) for item in value.values())
    if isinstance(value, list):
        return all(_is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
