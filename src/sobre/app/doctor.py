"""sobre doctor: look at this machine: versions, measured speed, which kernels run, and what is missing."""

import json
from dataclasses import dataclass

from sobre.config.load import load
from sobre.errors import SandboxError


@dataclass(frozen=True)
class DoctorOptions:
    """Flags of `sobre doctor`."""

    json: bool = False
    """One JSON document on standard output."""


def main(argv: list[str]) -> int:
    """Measure for about two seconds, then tell."""
    options = load(DoctorOptions, argv, recipes=None, prog="sobre doctor")
    import torch

    from sobre.kernels import select
    from sobre.runtime.device import calibrate, choose_threads
    from sobre.runtime.environment import environment
    from sobre.tasks.sandbox import mechanism

    choose_threads()
    found = calibrate()
    kernels = {op: select.choose(op, "cpu", getattr(torch, found.dtype)) for op in select.OPS}
    try:
        held, by = True, mechanism()
    except SandboxError as error:
        held, by = False, str(error)
    report = {
        "environment": environment(torch.get_num_threads()),
        "speed": found.to_dict(),
        "kernels": {op: {"name": kernel.name, "reason": kernel.reason} for op, kernel in kernels.items()},
        "sandbox": {"holds": held, "by": by},
    }
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
        return 0
    print(f"{found.name}, python {report['environment']['python']}, torch {torch.__version__}")
    print(f"matrix products   float32 {found.fp32_flops / 1e9:,.0f} GFLOP/s, bfloat16 {found.bf16_flops / 1e9:,.0f}")
    print(f"memory            {found.bytes_per_s / 1e9:,.1f} GB/s moved by a large copy")
    print(f"training runs in  {found.dtype}")
    for op, kernel in kernels.items():
        print(f"  {op:<17} {kernel.name}: {kernel.reason}")
    print(f"model-written code {'runs in' if held else 'is refused:'} {by}")
    return 0
