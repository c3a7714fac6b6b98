"""One process of a run in two is killed: torchrun starts both again, nothing is lost, and the second never speaks."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest

from .test_faults import Run

STEPS = 30


@pytest.mark.slow
def test_a_killed_process_costs_no_step_and_only_the_first_process_speaks(
    tmp_path: Path, launch: Callable[..., Popen[str]]
) -> None:
    out, errors, logs = tmp_path / "run", tmp_path / "errors", tmp_path / "logs"
    story = ["-m", "sobre", "run", "nano", "--out", str(out), "--parallel.shards", "2", "--stages", "pretrain"]
    story += ["--pretrain.steps", str(STEPS), "--save.every-s", "0"]
    redirected = ["--redirects", "1:3", "--log-dir", str(logs)]
    run = Run(out, launch(2, *redirected, *story, restarts=1, errors=errors), errors)
    run.wait_until(lambda: (out / "state" / "pretrain" / "step-00000003").exists(), "a saved state")
    os.kill(run.worker(1), signal.SIGKILL)
    assert run.process.wait(timeout=240) == 0, run.errors()[-3000:]
    assert run.errors().count("resume: pretrain goes on after step") == 1
    assert [line["step"] for line in run.lines("metrics.jsonl") if line["stage"] == "pretrain"] == list(range(STEPS))
    ledger = run.lines("ledger.jsonl")
    assert sum(entry["tokens"] for entry in ledger if entry["stage"] == "pretrain") == STEPS * 512
    assert [entry["wasted_s"] > 0 for entry in ledger if entry["stage"] == "lost"] == [True]
    spoken = {path.relative_to(logs).parts[1:]: path.read_text() for path in logs.rglob("std*.log")}
    assert spoken == {(f"attempt_{at}", "1", f"std{name}.log"): "" for at in range(2) for name in ("out", "err")}
    assert "run nano in" in run.errors()
