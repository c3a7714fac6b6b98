"""How long a process has waited for others: who holds them up waits least.

In a step all wait for the slowest and take as long, so the clock tells them not apart. A thread looks, `LOOKS_PER_S`
times a second, whether the main thread stands in one of torch's exchanges. What is left of the time is the process's
own: at work, asleep, stopped, or waiting for a disk. A stopped process (SIGSTOP) is not looked at, and that time is its
own, too. On a GPU the host seldom stands in an exchange, and its own time is that of all.
"""

import sys
import threading
import time
from pathlib import Path

import torch.distributed

LOOKS_PER_S = 50
HOME = str(Path(torch.distributed.__file__).parent)
EXCHANGES = (
    "distributed_c10d.py",
    "_functional_collectives.py",
    "_fsdp_collectives.py",
    "_fsdp_param_group.py",
    "pipelining/schedules.py",
)
"""Files of torch.distributed in which a process waits for others."""


class Waiting:
    """Example: waiting = Waiting(); ...; seconds = waiting.own_s(); waiting.stop()"""

    def __init__(self) -> None:
        self._thread_id = threading.get_ident()
        self._began, self._waited_s = time.perf_counter(), 0.0
        self._stopped = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def own_s(self) -> float:
        """Seconds since this was asked last, but for those in which the thread that began waited for others."""
        now, waited_s = time.perf_counter(), self._waited_s
        took_s, self._began, self._waited_s = now - self._began, now, 0.0
        return max(0.0, took_s - waited_s)

    def stop(self) -> None:
        self._stopped.set()

    def _look(self) -> None:
        while not self._stopped.wait(1 / LOOKS_PER_S):
            if is_exchange(sys._current_frames()[self._thread_id].f_code.co_filename):
                self._waited_s += 1 / LOOKS_PER_S


def is_exchange(file: str) -> bool:
    """Whether a thread whose innermost function stands in `file` waits for another process."""
    return file.startswith(HOME) and file.endswith(EXCHANGES)
