"""sobre doctor: look at this machine: versions, measured speed, which kernels run, and what is missing.

What it measures is kept as the chip `this` (plan/chips.py), so that `sobre plan --chip this` knows the machine.
"""

import json
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from sobre.config.load import load
from sobre.errors import ConfigError, SandboxError
from sobre.plan.chips import THIS, chip, this_file, this_text
from sobre.schemas import VERSION

if TYPE_CHECKING:
    from sobre.runtime.device import Calibration
    from sobre.runtime.energy import Energy
    from sobre.runtime.machine import Narrow


@dataclass(frozen=True)
class DoctorOptions:
    """Flags of `sobre doctor`."""

    keep: bool = True
    """Keep what was measured for `sobre plan --chip this`."""
    json: bool = False
    """One JSON document on standard output."""


def main(argv: list[str]) -> int:
    """Measure for a few seconds, then tell."""
    options = load(DoctorOptions, argv, recipes=None, prog="sobre doctor")
    import torch

    from sobre.kernels import select
    from sobre.runtime.device import calibrate, choose_threads, pick_device
    from sobre.runtime.energy import EnergyMeter
    from sobre.runtime.environment import environment
    from sobre.runtime.machine import disk_bytes_per_s, narrow_rates
    from sobre.tasks.sandbox import mechanism

    choose_threads()
    device, meter = pick_device(), EnergyMeter()
    found = calibrate(device)
    drawn = meter.read(found.seconds)
    narrow = narrow_rates(device)
    disk = disk_bytes_per_s(Path(tempfile.gettempdir()))
    kernels = {op: select.choose(op, device.type, getattr(torch, found.dtype)) for op in select.OPS}
    try:
        held, by = True, mechanism()
    except SandboxError as error:
        held, by = False, str(error)
    machine = environment(torch.get_num_threads())
    if options.keep:
        keep(found, narrow, disk, drawn)
    report = {
        "schema": VERSION,
        "environment": machine,
        "speed": found.to_dict() | {"fp16_flops": narrow.fp16, "int8_ops": narrow.int8, "fp8_flops": narrow.fp8},
        "disk_bytes_per_s": disk,
        "kernels": {op: {"name": kernel.name, "reason": kernel.reason} for op, kernel in kernels.items()},
        "sandbox": {"holds": held, "by": by},
        "kept": str(this_file()) if options.keep else None,
    }
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
        return 0
    print(f"{found.name}, python {machine['python']}, torch {torch.__version__}")
    print(f"matrix products   float32 {found.fp32_flops / 1e9:,.0f} GFLOP/s, bfloat16 {found.bf16_flops / 1e9:,.0f}")
    others = {"float16": narrow.fp16, "int8": narrow.int8, "float8": narrow.fp8}
    print(f"                  {', '.join(f'{name} {rate / 1e9:,.1f}' for name, rate in others.items() if rate)}")
    print(f"memory            {found.bytes_per_s / 1e9:,.1f} GB/s moved by a large copy")
    print(f"disk              {disk / 1e9:,.2f} GB/s written and waited for")
    print(f"training runs in  {found.dtype}")
    for op, kernel in kernels.items():
        print(f"  {op:<17} {kernel.name}: {kernel.reason}")
    print(f"model-written code {'runs in' if held else 'is refused:'} {by}")
    if options.keep:
        print(f"kept as chip `{THIS}` in {this_file()}: sobre plan --budget 10m --chip {THIS}")
    return 0


def keep(found: "Calibration", narrow: "Narrow", disk: float, drawn: "Energy") -> None:
    """Write the chip `this`."""
    from sobre.runtime.device import memory_of
    from sobre.runtime.energy import WATTS_PER_CORE, assumed_watts
    from sobre.runtime.files import write_text

    path = this_file()
    memory = memory_of(found.device)
    if memory is None:
        raise ConfigError("this system does not tell how much memory there is; --no-keep measures all the same")
    measured: dict[str, float | str | bool] = {
        "bf16": found.bf16_flops / 1e12,
        "fp32": found.fp32_flops / 1e12,
        "fp16": narrow.fp16 / 1e12,
        "int8": narrow.int8 / 1e12,
        "fp8": narrow.fp8 / 1e12,
        "measured": True,
        "memory_gb": memory / 1e9,
        "bandwidth": found.bytes_per_s / 1e9,
        "disk": disk / 1e9,
    }
    note = f"{found.name}, measured {date.today()}"
    if drawn.joules is not None:
        measured["watts"] = drawn.joules / found.seconds
    elif not path.is_file():
        measured["watts"] = assumed_watts()
        note += f"; {WATTS_PER_CORE:g} W for each core are assumed"
    standing: dict[str, float | str | bool] = {} if path.is_file() else {"node": 1, "link": 0, "network": 0.25}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, this_text(standing | measured | {"note": note}))
    chip(THIS)
