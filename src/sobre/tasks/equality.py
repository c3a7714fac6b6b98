"""Whether two mathematical answers are the same: numbers here and exactly, everything else by math-verify.

math-verify (the extra `math`) runs in a process of its own with a time limit: what a model writes may take for ever to
simplify, and a limit by signals works in one thread only.
"""

import atexit
import json
import os
import re
import selectors
import subprocess
import sys
import threading
from fractions import Fraction
from importlib.util import find_spec

from sobre.errors import ConfigError, JudgeError

MAX_CHARS = 400
"""A longer answer is not read: unless it is the reference to the letter, it is wrong."""
LIMIT_S = 5.0
START_S = 40.0
"""For the start of a process, which imports sympy. With LIMIT_S less than JUDGE_S, after which a judge hangs."""

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_SLASH = re.compile(r"([-+]?\d{1,12})/(\d{1,12})")


def equal(reference: str, answer: str, *, limit_s: float = LIMIT_S) -> bool:
    """Whether `answer` is right. An answer that takes longer than `limit_s` to compare is wrong.

    Raises JudgeError where nobody could tell: a reference that cannot be read, a reader that does not start.
    """
    found = compared(reference, answer, limit_s=limit_s)
    if found is None:
        raise JudgeError(f"the reference {reference[:80]!r} is no mathematics that can be read")
    return found


def compared(reference: str, answer: str, *, limit_s: float = LIMIT_S) -> bool | None:
    """`equal`, or None where the reference cannot be read and the answer is not the same text."""
    reference, answer = reference.strip(), answer.strip()
    if reference == answer:
        return bool(answer)
    if not answer or len(answer) > MAX_CHARS:
        return False
    numbers = read_number(reference), read_number(answer)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0] == numbers[1]
    return _checker().ask(reference, answer, limit_s)


def read_number(text: str) -> Fraction | None:
    """`1,234.50`, `$12`, `3/4`, `12.` as a number; None for everything else."""
    text = text.strip().removeprefix("\\$").removeprefix("$").removesuffix(".").strip()
    if not text.isascii() or len(text) > 40:
        return None
    if found := _SLASH.fullmatch(text):
        return Fraction(int(found[1]), int(found[2])) if int(found[2]) else None
    return Fraction(text.replace(",", "")) if _NUMBER.fullmatch(text) else None


class Checker:
    """One process that compares; started when first asked, ended and started anew when it takes too long."""

    def __init__(self) -> None:
        self.n_timeouts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, reference: str, answer: str, limit_s: float) -> bool | None:
        """Whether they are equal, False after `limit_s` seconds; None where the reference cannot be read.

        Raises JudgeError where math-verify does not start.
        """
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                process = self._start()
            assert process.stdin is not None
            process.stdin.write(json.dumps([reference, answer]).encode() + b"\n")
            process.stdin.flush()
            line = _line(process, limit_s)
            if not line:  # too long, or it fell: out of memory, out of stack
                self.n_timeouts += 1
                self.close()
            return json.loads(line) if line else False

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            process.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        if find_spec("math_verify") is None:
            raise ConfigError("answers that are no plain numbers need math-verify: pip install 'sobre[math]'")
        source = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sobre.tasks.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])},
        )
        if _line(self._process, START_S) != b"ready\n":
            self.close()
            raise JudgeError(f"math-verify, which reads mathematical answers, did not start within {START_S:g} s")
        return self._process


def _line(process: "subprocess.Popen[bytes]", within_s: float) -> bytes:
    """The next line that the process says; empty when it says none in time, or has ended."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(within_s) else b""


_CHECKERS: list[Checker] = []


def n_timeouts() -> int:
    """Comparisons of this process that took too long, or in which the checker fell; each counted as wrong."""
    return sum(checker.n_timeouts for checker in _CHECKERS)


def _checker() -> Checker:
    """The checker of this process."""
    if not _CHECKERS:
        _CHECKERS.append(Checker())
        atexit.register(_CHECKERS[0].close)
    return _CHECKERS[0]
