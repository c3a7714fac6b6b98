"""The sandbox for code that a model wrote: run it, learn whether it came to its end, get what it printed.

Linux namespaces, a filter of system calls and resource limits, all three or nothing: where this machine cannot give
them, `run_code` raises SandboxError and nothing is run. It needs no rights: an ordinary user can make a user namespace
on most kernels. The inside is `jail.py`, a process of its own.

What it does not do: tests and tested code share one interpreter, so code that goes looking for its judge can find it
(see docs/how-to/reward-code.md). It cannot reach anything else.
"""

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal

from sobre.errors import SandboxError
from sobre.tasks import seccomp

JAIL = Path(__file__).with_name("jail.py")
PIECE = 65536
Status = Literal["done", "error", "time", "memory", "output"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a piece of code may take."""

    seconds: float = 5.0
    """Of the clock, the start of the interpreter (some 50 ms) included."""
    memory_bytes: int = 512 * 2**20
    """Address space."""
    output_bytes: int = 64 * 1024
    """Of standard output and standard error together."""
    file_bytes: int = 16 * 2**20
    """Of all files in its /tmp."""


@dataclass(frozen=True)
class Outcome:
    """How it ended."""

    status: Status
    """done: it ran to its end. error: an exception, an exit of its own, a crash. The others: the limit that it met."""
    stdout: str
    stderr: str
    """Bytes that are no UTF-8 are shown escaped in both."""
    seconds: float


def run_code(code: str, limits: Limits = Limits()) -> Outcome:  # frozen
    """Run Python code. Raises SandboxError when the sandbox cannot be built here."""
    secret = secrets.token_hex(16)
    task = {
        "code": code,
        "filter": seccomp.program().hex(),
        "secret": secret,
        "limits": {**asdict(limits), "cpu_s": int(limits.seconds) + 1},
    }
    began = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as given:
        json.dump(task, given)
        given.seek(0)
        stopped, streams, returncode = _watch(given, limits, began + limits.seconds)
    report = streams["report"].decode("utf-8", "replace")
    stdout, stderr = (streams[name].decode("utf-8", "backslashreplace") for name in ("stdout", "stderr"))
    if not report.startswith("ready\n") and stopped is None:
        raise SandboxError(f"this machine cannot hold model-written code, so none is run: {_last_line(stderr)}")
    return Outcome(_status(report, secret, stopped, returncode, stderr), stdout, stderr, time.monotonic() - began)


@cache
def mechanism() -> str:
    """What holds here, proved by trying; raises SandboxError when nothing does."""
    outcome = run_code(_PROOF)
    if outcome.status != "done":
        raise SandboxError(f"the sandbox does not hold on this machine: {_last_line(outcome.stderr)}")
    return "user, mount, process and network namespaces; seccomp; resource limits"


_PROOF = """
import os, socket
for attempt in (socket.socket, os.fork, lambda: open("/etc/passwd"), lambda: open("/python/x", "w")):
    try:
        attempt()
    except OSError:
        continue
    raise SystemExit(f"{attempt} succeeded")
assert os.listdir("/") == ["tmp", "python"] or sorted(os.listdir("/")) == ["python", "tmp"]
"""


_LIBRARIES = ("LD_LIBRARY_PATH",)
"""Where an interpreter that is a shared library may be found; the jail forgets it before it runs the code."""


def _watch(given: IO[str], limits: Limits, deadline: float) -> tuple[Status | None, dict[str, bytes], int]:
    """Run the jail until it ends or meets a limit that is watched from outside."""
    report_read, report_write = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _FIRST.format(jail=str(JAIL), report=report_write)],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(report_write,),
            env={name: os.environ[name] for name in _LIBRARIES if name in os.environ},
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(report_write)
    assert process.stdout is not None
    assert process.stderr is not None
    pipes = {process.stdout.fileno(): "stdout", process.stderr.fileno(): "stderr", report_read: "report"}
    found = dict.fromkeys(("stdout", "stderr", "report"), b"")
    stopped: Status | None = None
    try:
        with selectors.DefaultSelector() as selector:
            for pipe in pipes:
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map() and stopped is None:
                for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                    piece = os.read(key.fd, PIECE)
                    found[pipes[key.fd]] += piece
                    if not piece:
                        selector.unregister(key.fd)
                if time.monotonic() >= deadline:
                    stopped = "time"
                elif sum(map(len, found.values())) > limits.output_bytes:
                    stopped = "output"
    finally:
        if stopped is not None or sys.exc_info()[0] is not None:
            process.kill()  # process 1 inside dies with it
        returncode = process.wait()
        process.stdout.close()
        process.stderr.close()
        os.close(report_read)
    return stopped, {name: text[: limits.output_bytes] for name, text in found.items()}, returncode


_FIRST = "import os, runpy; os.dup2({report}, 3); runpy.run_path({jail!r}, run_name='__main__')"
"""Report goes to descriptor 3; other descriptors are closed by the jail."""


def _status(report: str, secret: str, stopped: Status | None, returncode: int, stderr: str) -> Status:
    if stopped is not None:
        return stopped
    if report == f"ready\n{secret}":
        return "done"
    if returncode == signal.SIGXCPU:
        return "time"
    return "memory" if "memory\n" in report else "error"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
