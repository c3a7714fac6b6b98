"""Starts torchrun on this machine, as a user does, and returns what the first process wrote."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(SRC), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "SOBRE_NO_REEXEC": "1", "PYTHONPATH": path}


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., str]:
    return start


@pytest.fixture
def launch() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts torchrun and comes back at once; what still runs at the end of the test is ended."""
    started: list[subprocess.Popen[str]] = []

    def begin(n_processes: int, *command: str, errors: Path, restarts: int = 0) -> subprocess.Popen[str]:
        full = line(n_processes, *command, restarts=restarts)
        with errors.open("w") as file:
            started.append(subprocess.Popen(full, env=environment(), stdout=subprocess.DEVNULL, stderr=file, text=True))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)


def start(n_processes: int, *command: str, restarts: int = 0, timeout_s: float = 240) -> str:
    """Run `command` (a script, or -m and a module) in `n_processes`; return standard error, or fail with its end."""
    full = line(n_processes, *command, restarts=restarts)
    done = subprocess.run(full, env=environment(), capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def line(n_processes: int, *command: str, restarts: int) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    return [*launcher, f"--max-restarts={restarts}", *command]
