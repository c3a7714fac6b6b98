"""What fits: weights before they are read, and a cache that cannot run out of memory while answers are written.

The system gives memory as it is used, so a cache planned too large is noticed when it is too late: when the process is
ended in the middle of the night. Without `--cache-tokens` the cache therefore takes at most `SHARE` of what is free
once the weights are there; with less than all answers at full length, they wait or give way (engine/scheduler.py).
"""

import sys
from pathlib import Path

import torch

from sobre.errors import RunError
from sobre.models.config import BLOCK

SHARE = 0.5
"""Of the free memory, for the cache; the rest is for the products of a step, other models and the system."""
GROUPS = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; on a CPU what the system could give to this process and its group allows.

    Where nobody tells, as much as there could be: then nothing is refused.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_of_the_system(), _of_the_group(GROUPS)) if device.type == "cpu" else sys.maxsize


def check_weights(path: Path, smallest: float, device: torch.device) -> None:
    """Refuse a model whose weights cannot fit. `smallest`: bytes in memory for each byte of the files, at least."""
    n_bytes = int(smallest * sum(file.stat().st_size for file in path.glob("*.safetensors")))
    free = free_bytes(device)
    if n_bytes > free:
        raise RunError(
            f"{path}: its weights take {gib(n_bytes)}, and {gib(free)} of memory are free: another --dtype, a smaller"
            " model or another machine"
        )


def fitting_cache(per_token: int, n_slots: int, asked: int, longest: int, device: torch.device) -> tuple[int, int]:
    """(context, tokens of the cache in whole blocks): all answers at full length where that fits, else what does.

    `asked`: the context that was asked for, which is kept or refused; with 0 it is the model's `longest`, or as much of
    it as fits.
    """
    free = free_bytes(device)
    most = int(free * SHARE) // max(per_token, 1) // BLOCK * BLOCK
    context = asked or longest
    if _in_blocks(context) > most:
        if asked or not most:
            raise RunError(
                f"the cache of one answer of {context:,} tokens takes {gib(_in_blocks(context) * per_token)}, more than"
                f" {SHARE:.0%} of the {gib(free)} of memory that are free; --max-context {max(most, BLOCK)} would fit"
            )
        context = most
    return context, min(n_slots * _in_blocks(context), most)


def _in_blocks(n_tokens: int) -> int:
    return -(-n_tokens // BLOCK) * BLOCK


def gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:,.2f} GiB"


def _of_the_system() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return sys.maxsize
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return sys.maxsize if found is None else int(found) * 1024


def _of_the_group(groups: Path) -> int:
    """What the limit of a control group (version 2) leaves; inside a container its own group is the root here."""
    try:
        limit = (groups / "memory.max").read_text(encoding="ascii").strip()
        used = int((groups / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if limit == "max" else max(0, int(limit) - used)
