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

from sobre.errors import ConfigError

MAX_CHARS = 400
"""A longer answer is none: it is wrong without being read."""
LIMIT_S = 5.0
START_S = 60.0
"""For the first comparison of a process, which imports sympy."""

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_SLASH = re.compile(r"([-+]?\d{1,12})/(\d{1,12})")


def equal(reference: str, answer: str, *, limit_s: float = LIMIT_S) -> bool:
    """Whether `answer` is right. An answer that takes longer than `limit_s` to compare is wrong."""
    reference, answer = reference.strip(), answer.strip()
    if not answer or len(answer) > MAX_CHARS:
        return False
    if reference == answer:
        return True
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

    def ask(self, reference: str, answer: str, limit_s: float) -> bool:
        """Whether they are equal, or False after `limit_s` seconds."""
        with self._lock:
            fresh = self._process is None or self._process.poll() is not None
            process = self._start() if fresh or self._process is None else self._process
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([reference, answer]).encode() + b"\n")
            process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                ready = selector.select(limit_s + (START_S if fresh else 0.0))
            line = process.stdout.readline() if ready else b""
            if not line:  # too long, or it fell: out of memory, out of stack
                self.n_timeouts += 1
                self.close()
            return line == b"true\n"

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
        return self._process


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
