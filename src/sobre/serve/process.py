"""Another engine as a process of this machine: started, watched, and ended with all that it has started.

It leads a session of its own: Ctrl-C in the terminal reaches this server alone, which lets running answers end first.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

from sobre.errors import RunError

STOP_S = 30.0
"""Seconds between being asked to end (SIGTERM) and being ended (SIGKILL)."""


class EngineProcess:
    """`with EngineProcess(line, say) as process:` runs it until the block ends, also when SIGTERM comes meanwhile."""

    def __init__(self, line: Sequence[str], say: Callable[[str], None]) -> None:
        self._say = say
        say(f"starting {' '.join(line)}")
        try:
            self._process = subprocess.Popen(line, start_new_session=True)
        except OSError as error:
            raise RunError(f"{line[0]} cannot be started ({error.strerror}); is it installed here?") from None

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, leave)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            signal.signal(signal.SIGTERM, self._before)

    def stop(self) -> None:
        """Ask it to end, and wait; end it by force when it takes too long, or whoever waits is told to leave."""
        if self.code is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._say(f"the engine did not end within {STOP_S:g} s and is killed")
        finally:
            with suppress(ProcessLookupError):  # nothing is left of it
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def leave(signal_number: int, frame: FrameType | None) -> None:
    """On SIGTERM before the server takes signals, and after: end what was started, then leave."""
    raise SystemExit(0)
