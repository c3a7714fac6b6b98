"""A run that hangs says who, and leaves what every process was doing."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import environment, line

HANG = Path(__file__).with_name("hang.py")


def hang(where: str, record: Path) -> str:
    """What is said of a process that hangs there, when all has ended."""
    started = line(2, str(HANG), str(record), where, restarts=0)
    done = subprocess.run(started, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.slow
def test_a_hung_process_leaves_its_stack_and_the_others_their_exchanges(tmp_path: Path) -> None:
    said = hang("step", tmp_path / "flight")
    assert "process 0 waited in vain" in said, said[-3000:]
    assert f"process 1 does not answer: it hangs or is dead; what each was doing: {tmp_path / 'flight'}" in said
    assert "in lost_in_thought" in (tmp_path / "flight" / "process-1.txt").read_text()
    last = json.loads((tmp_path / "flight" / "process-0.json").read_text())["entries"][-1]
    assert (last["profiling_name"], last["state"]) == ("gloo:all_reduce", "scheduled")


@pytest.mark.slow
def test_a_process_that_is_stopped_is_missed_where_others_may_wait_for_hours(tmp_path: Path) -> None:
    began = time.monotonic()
    said = hang("beside", tmp_path / "flight")
    assert time.monotonic() - began < 120
    assert "process 0 waits in vain: no sign of life from process 1: it hangs, is dead, or its network is cut" in said
    assert "in gather" in (tmp_path / "flight" / "process-0.txt").read_text()
    last = json.loads((tmp_path / "flight" / "process-0.json").read_text())["entries"][-1]
    assert last["profiling_name"] == "gloo:all_gather"
