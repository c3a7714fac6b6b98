"""What `sobre doctor` measures of this machine beside runtime/device.py, for the planner: narrow formats, the disk.

A run does not need to know them; a plan may.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile

import torch

from sobre.runtime.device import product_rates

FILE_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Narrow:
    """Operations per second of matrix products in narrow formats; 0 where there is no kernel."""

    fp16: float = 0.0
    int8: float = 0.0
    fp8: float = 0.0


def narrow_rates(device: torch.device, seconds: float = 0.3) -> Narrow:
    """Measure each format for about `seconds`."""
    formats = {"fp16": torch.float16, "int8": torch.int8}
    if device.type == "cuda":  # elsewhere products in FP8 are emulated
        formats["fp8"] = torch.float8_e4m3fn
    rates = {name: product_rates(device, dtype, seconds) for name, dtype in formats.items()}
    return Narrow(**{name: median(found) if found else 0.0 for name, found in rates.items()})


def disk_bytes_per_s(folder: Path) -> float:
    """Bytes per second of a file that is written and waited for, as a saved state is."""
    block = os.urandom(2**20)
    with NamedTemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        for _ in range(FILE_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return FILE_BYTES / (time.perf_counter() - start)
