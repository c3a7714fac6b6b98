"""A process that is slow in a real run is named by the health line, whatever makes it slow."""

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

import pytest

from sobre.train.health import SLOW

STOPPED_S, RUNNING_S = 0.15, 0.05


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_process_that_stands_still_three_quarters_of_the_time_is_named(
    tmp_path: Path, launch: Callable[..., Popen[str]]
) -> None:
    """SIGSTOP and SIGCONT, as a machine that is busy with others would: it uses no processor meanwhile."""
    out, errors = tmp_path / "run", tmp_path / "errors"
    flags = ("--pretrain.steps", "80", "--stages", "pretrain", "--parallel.shards", "2")
    run = launch(2, "-m", "sobre", "run", "nano", "--out", str(out), *flags, errors=errors)
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not metrics.exists() and run.poll() is None:  # the first line comes some steps into the stage
        assert time.monotonic() < deadline, errors.read_text()[-3000:]
        time.sleep(0.02)
    slow = sorted(map(int, Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()))[1]
    named = "process 1 holds the others up: its part takes"
    while run.poll() is None and named not in errors.read_text():
        assert time.monotonic() < deadline, errors.read_text()[-3000:]
        with suppress(ProcessLookupError):
            os.kill(slow, signal.SIGSTOP)
            time.sleep(STOPPED_S)
            os.kill(slow, signal.SIGCONT)
        time.sleep(RUNNING_S)
    assert run.wait(timeout=240) == 0, errors.read_text()[-3000:]
    assert named in errors.read_text()
    found = [line for line in map(json.loads, metrics.read_text().splitlines()) if "slowest_process" in line]
    assert sum(line["slowest_process"] == 1 and line["slowest_ratio"] > SLOW for line in found) >= 2, found
