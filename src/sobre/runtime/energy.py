"""Joules, if the machine tells: the RAPL counters of Linux, which cover the processor packages and need to be readable.

Without them energy is unknown, or an estimate from a wattage that the user states; it is never guessed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Energy:
    """What was used since the meter was last read."""

    joules: float | None
    source: Literal["measured", "estimated", "unknown"]


class EnergyMeter:
    """Reads the counters of all processor packages; `read` returns what was used since the last call."""

    def __init__(self, watts: float | None = None, powercap: Path = POWERCAP) -> None:
        self._watts = watts
        self._packages = _packages(powercap)
        self._last = [_number(package / "energy_uj") for package in self._packages]

    def read(self, seconds: float) -> Energy:
        """Energy of the `seconds` since the last call."""
        if self._packages and (used := self._joules()) is not None:
            return Energy(used, "measured")
        if self._watts is not None:
            return Energy(self._watts * seconds, "estimated")
        return Energy(None, "unknown")

    def _joules(self) -> float | None:
        now = [_number(package / "energy_uj") for package in self._packages]
        before, self._last = self._last, now
        total = 0
        for package, old, new in zip(self._packages, before, now, strict=True):
            if old is None or new is None:
                return None
            # the counter starts again at 0 beyond its range
            total += new - old if new >= old else new - old + (_number(package / "max_energy_range_uj") or 0)
        return total / 1e6


def _packages(powercap: Path) -> list[Path]:
    """The readable package counters: intel-rapl:0, intel-rapl:1 (AMD's carry the same name), not their parts."""
    folders = sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []
    return [f for f in folders if f.name.count(":") == 1 and _number(f / "energy_uj") is not None]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
