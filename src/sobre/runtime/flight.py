"""The flight record of a run that hangs: what every process was doing.

torch's flight recorder keeps the last exchanges of a process, with sizes, state and where they were called; a process
that waited in vain writes it to process-N.json. One that hangs writes nothing by itself: torchrun ends it when the
others have failed (SIGTERM), and it leaves the stacks of its threads in process-N.txt on that. A process that is
stopped (SIGSTOP) or whose machine is gone leaves neither; the others name it. On GPUs NCCL's watchdog ends a process
before anything here is asked: it writes the exchanges itself, to nccl-process-N (a pickle, for torch's `torchfrtrace`).
"""

import faulthandler
import os
import signal
from pathlib import Path

KEPT = 200
"""Exchanges that a process remembers."""


def keep() -> None:
    """Let torch remember the last exchanges; before the first group of processes is made."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(KEPT))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


def tell_watchdog(folder: Path) -> None:
    """Where NCCL's watchdog writes to, unless the user has said it. It adds the number of the process."""
    os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(folder / "nccl-process-"))


def write(folder: Path, rank: int) -> None:
    """This process's last exchanges."""
    from torch._C import _distributed_c10d  # not in every build of torch

    folder.mkdir(parents=True, exist_ok=True)
    told: bytes = _distributed_c10d._dump_fr_trace_json()  # type: ignore[attr-defined]  # torch's stubs lack it
    (folder / f"process-{rank}.json").write_bytes(told)


def leave_stacks(folder: Path, rank: int) -> None:
    """Write the stacks of all threads when this process is told to end, wherever it is then."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / f"process-{rank}.txt").open("w")
    faulthandler.register(signal.SIGTERM, file, all_threads=True, chain=True)


def write_stacks(folder: Path, rank: int) -> None:
    """Where all threads of this process are now; of one that ends without being told to."""
    with (folder / f"process-{rank}.txt").open("a") as file:
        faulthandler.dump_traceback(file, all_threads=True)


def nothing_to_tell(folder: Path, rank: int) -> None:
    """All went well: forget it."""
    faulthandler.unregister(signal.SIGTERM)
    (folder / f"process-{rank}.txt").unlink()
