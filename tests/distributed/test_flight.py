"""A run that hangs says who, and leaves what every process was doing."""

import json
import subprocess
from pathlib import Path

import pytest

from .conftest import environment, line

HANG = Path(__file__).with_name("hang.py")


@pytest.mark.slow
def test_a_hung_process_leaves_its_stack_and_the_others_their_exchanges(tmp_path: Path) -> None:
    started = line(2, str(HANG), str(tmp_path / "flight"), restarts=0)
    done = subprocess.run(started, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode != 0
    assert "process 0 waited in vain" in done.stderr, done.stderr[-3000:]
    assert f"process 1 does not answer: it hangs or is dead; what each was doing: {tmp_path / 'flight'}" in done.stderr
    assert "in lost_in_thought" in (tmp_path / "flight" / "process-1.txt").read_text()
    last = json.loads((tmp_path / "flight" / "process-0.json").read_text())["entries"][-1]
    assert (last["profiling_name"], last["state"]) == ("gloo:all_reduce", "scheduled")
