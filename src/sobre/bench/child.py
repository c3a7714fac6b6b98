"""A cell's own process: its output in a file, its seconds and its largest memory known."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sobre.errors import RunError

BYTES_OF_MAXRSS = 1 if sys.platform == "darwin" else 2**10


def run(command: Sequence[str], log: Path) -> tuple[float, float]:
    """Seconds of the whole process, and MiB of its largest resident memory (no less than this one's at its start).

    Raise RunError with the log's end when it does not exit with 0.
    """
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as out:
        started = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            _, status, used = os.wait4(started.pid, 0)
        except BaseException:
            started.kill()
            raise
        started.returncode = os.waitstatus_to_exitcode(status)
    if started.returncode:
        tail = log.read_text(encoding="utf-8")[-2000:]
        raise RunError(f"the process of {log.parent} ended with exit code {started.returncode}:\n{tail}")
    return time.perf_counter() - began, used.ru_maxrss * BYTES_OF_MAXRSS / 2**20
