"""Time, and the meter that says how much of the budget is gone.

The meter counts useful work only. It starts at the command's start; a saved state carries what was used, and a resumed
run goes on from there, so that a second start and the steps lost in a kill cost wall time but no budget.
"""

import os
import time
from pathlib import Path
from typing import Literal, Protocol


class Clock(Protocol):
    """Seconds since some fixed moment, never going back."""

    def now(self) -> float: ...


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()


def process_age_s() -> float:
    """How long this process has lived, re-exec and imports included; 0 where the system does not tell (not Linux)."""
    try:
        # field 22 of stat counts ticks since boot; the name in field 2 may hold blanks, so count after its bracket
        started = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, float(Path("/proc/uptime").read_text().split()[0]) - started)
    except (OSError, ValueError, IndexError):
        return 0.0


class Meter:
    """What was used of a budget of `amount` seconds or FLOPs.

    Example:
        meter = Meter("seconds", 420.0, clock, head_start_s=process_age_s())
        meter.add_flops(step_flops); meter.used(); meter.remaining()
        saved = meter.state(); ...; Meter("seconds", 420.0, clock).restore(saved)
    """

    def __init__(
        self, kind: Literal["seconds", "flops"], amount: float, clock: Clock | None = None, *, head_start_s: float = 0.0
    ) -> None:
        self.kind = kind
        self.amount = amount
        self._clock = clock or SystemClock()
        self._seconds = head_start_s
        self._since = self._clock.now()
        self._flops = 0.0

    def add_flops(self, flops: float) -> None:
        """Count model FLOPs: of every training step, rollout and evaluation."""
        self._flops += flops

    @property
    def seconds(self) -> float:
        return self._seconds + self._clock.now() - self._since

    @property
    def flops(self) -> float:
        return self._flops

    def used(self) -> float:
        """Seconds or FLOPs used so far, as the budget counts."""
        return self.seconds if self.kind == "seconds" else self._flops

    def remaining(self) -> float:
        """What is left; negative once the budget is overdrawn."""
        return self.amount - self.used()

    def state(self) -> dict[str, float]:
        """What a saved state must hold."""
        return {"seconds": self.seconds, "flops": self._flops}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from a saved state: what happened since it was saved is not counted."""
        self._seconds, self._flops = state["seconds"], state["flops"]
        self._since = self._clock.now()
