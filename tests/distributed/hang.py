"""Started by torchrun in two processes: the second stops, and the first waits for it.

`step` stops in the middle of a step, where exchanges end by themselves. `beside` is outside of one, where others may
wait for hours: the whole process is stopped (SIGSTOP), and goes on when it should have been missed, so that it can end.
"""

import os
import signal
import subprocess
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
    if processes.rank == 1 and sys.argv[2] == "step":
        lost_in_thought()
    if processes.rank == 1:
        subprocess.Popen(["sh", "-c", f"sleep 20; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
        lost_in_thought()
    processes.prompt.any(True) if sys.argv[2] == "step" else processes.gather("there")
