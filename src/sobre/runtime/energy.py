"""Joules, if the machine tells: RAPL counters of processor packages (Linux), NVML counters of NVIDIA accelerators.

Where an accelerator counts, its joules are added to the packages'; where neither counts, energy is an estimate from a
wattage, the user's or that of the cores, and is called one.
"""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

POWERCAP = Path("/sys/class/powercap")
WATTS_PER_CORE = 8.0
"""Draw of a busy core with its share of memory and supply, where nothing measures it: *assumed*."""


@dataclass(frozen=True)
class Energy:
    """What was used since the meter was last read."""

    joules: float | None
    source: Literal["measured", "estimated", "unknown"]


class EnergyMeter:
    """Reads the counters of all processor packages; `read` returns what was used since the last call."""

    def __init__(self, watts: float | None = None, powercap: Path = POWERCAP, nvml: Any = None) -> None:
        self._watts = watts
        self._accelerators = Accelerators(nvml if nvml is not None else load_nvml())
        self._packages = _packages(powercap)
        self._last = [_number(package / "energy_uj") for package in self._packages]

    def read(self, seconds: float) -> Energy:
        """Energy of the `seconds` since the last call."""
        packages = self._joules() if self._packages else None
        accelerators = self._accelerators.read()
        if packages is not None or accelerators is not None:
            return Energy((packages or 0.0) + (accelerators or 0.0), "measured")
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


def assumed_watts() -> float:
    """What this machine draws at work, if nobody says and nothing counts."""
    return WATTS_PER_CORE * (os.cpu_count() or 1)


class Accelerators:
    """The energy counters of NVIDIA accelerators, since their driver was loaded, by its library (NVML)."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._handles = _handles(library) if library is not None else []
        self._last = self._millijoules()

    def read(self) -> float | None:
        """Joules since the last call; none where there is no counter."""
        before, self._last = self._last, self._millijoules()
        if self._last is None or before is None:
            return None
        return (self._last - before) / 1e3

    def _millijoules(self) -> int | None:
        total, value = 0, ctypes.c_ulonglong()
        for handle in self._handles:
            if self._library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)) != 0:
                return None
            total += value.value
        return total if self._handles else None


def load_nvml() -> Any:
    """NVIDIA's management library, or none where there is no driver."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


def _handles(library: Any) -> list[ctypes.c_void_p]:
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    handles = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) == 0:
            handles.append(handle)
    return handles


def _packages(powercap: Path) -> list[Path]:
    """The readable package counters: intel-rapl:0, intel-rapl:1 (AMD's carry the same name), not their parts."""
    folders = sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []
    return [f for f in folders if f.name.count(":") == 1 and _number(f / "energy_uj") is not None]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
