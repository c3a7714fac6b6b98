"""Started by torchrun in two processes: the second stops in the middle of a step, and the first waits for it."""

import sys
import threading
from datetime import timedelta
from pathlib import Path

from sobre.runtime.processes import Processes


def lost_in_thought() -> None:
    threading.Event().wait()


processes = Processes.start(timedelta(seconds=2))
with processes.watched(Path(sys.argv[1])):
    processes.prompt.gather("here")
    if processes.rank == 1:
        lost_in_thought()
    processes.prompt.any(True)
