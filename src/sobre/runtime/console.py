"""What a person sees of a run: a live line on a terminal, plain lines elsewhere; always on standard error."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn

PLAIN_S = 10.0
"""Seconds between plain lines of one stage."""


class Console:
    """The run's voice.

    Example:
        with Console() as console:
            console.stage("sft", total=400)
            console.update(41, 400, loss=1.23, tok_s=8100, usd=0.0021, left_s=97)
            console.say("sft: 412 steps instead of 400")
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet = quiet
        self._rich = RichConsole(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._plain_at = float("-inf")

    def stage(self, name: str, total: int) -> None:
        """Begin a stage; the line of the one before stays."""
        self._stop()
        self._stage, self._plain_at = name, float("-inf")
        if self._quiet or not self._rich.is_terminal:
            return
        columns = (TextColumn("{task.description:>9}"), BarColumn(24), TextColumn("{task.fields[line]}"))
        self._progress = Progress(*columns, console=self._rich, refresh_per_second=4)
        self._task = self._progress.add_task(name, total=total, line="")
        self._progress.start()

    def update(self, step: int, total: int, **values: float | None) -> None:
        """Show where the stage is; tok_s, usd and left_s get their units, other values are shown by name."""
        if self._quiet:
            return
        line = live_line(step, total, **values)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step, total=total, line=line)
        elif time.monotonic() - self._plain_at >= PLAIN_S or step >= total:
            self._plain_at = time.monotonic()
            self._rich.print(f"{self._stage}  {line}", markup=False)

    def update_bytes(self, done: int, total: int) -> None:
        """Show where a stage of reading or writing is, in megabytes; a begun one counts when all is done."""
        whole = -(-total // 1_000_000)
        self.update(whole if done >= total else done // 1_000_000, whole)

    def say(self, text: str, *, style: str = "") -> None:
        """One line that stays."""
        if not self._quiet:
            self._rich.print(text, style=style, markup=False)

    def close(self) -> None:
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None


def live_line(step: int, total: int, **values: float | None) -> str:
    """The figures of a step, in words: "41/400  loss 1.230  8,100 tok/s  $0.0021  1 min 37 s left"."""
    parts = [f"{step:,}/{total:,}"]
    for name, value in values.items():
        if value is None:
            continue
        if name == "tok_s":
            parts.append(f"{value:,.0f} tok/s")
        elif name == "usd":
            parts.append(f"${value:.4f}")
        elif name == "left_s":
            minutes, seconds = divmod(max(0, round(value)), 60)
            parts.append(f"{minutes} min {seconds:02d} s left" if minutes else f"{seconds} s left")
        else:
            parts.append(f"{name} {value:.3f}")
    return "  ".join(parts)
