"""kill -9 of one process of a divided run under torchrun: it goes on by itself from the last saved step."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest

from sobre.models.checkpoint import load_model
from sobre.train.state import saved_steps

STEPS = 160
FLAGS = [
    *("--parallel.shards", "2", "--parallel.experts", "2"),
    *("--pretrain.steps", str(STEPS), "--save.every-s", "2.5", "--stages", "pretrain", "rl"),
]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps_after_the_last_state(out: Path) -> int:
    """Steps in the metrics that no saved state holds; 0 as long as there is no state."""
    saved = saved_steps(out / "state" / "pretrain")
    return max(0, len(lines(out / "metrics.jsonl")) - saved[-1]) if saved else 0


def children(process: Popen[str]) -> list[int]:
    """The workers of a launcher, in the order of their start."""
    return sorted(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_process_costs_the_steps_after_the_last_state_and_nothing_else(
    tmp_path: Path, launch: Callable[..., Popen[str]]
) -> None:
    out = tmp_path / "run"
    process = launch(2, "-m", "sobre", "run", "nano", "--out", str(out), *FLAGS, restarts=1)
    deadline = time.monotonic() + 150
    while not steps_after_the_last_state(out):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "no step came after a saved state"
        time.sleep(0.02)
    os.kill(children(process)[1], signal.SIGKILL)
    errors = process.communicate(timeout=200)[1]
    assert process.returncode == 0, errors[-3000:]
    assert "resume: pretrain goes on after step" in errors

    metrics = lines(out / "metrics.jsonl")
    assert [line["step"] for line in metrics if line["stage"] == "pretrain"] == list(range(STEPS))
    assert all(line["stage"] in ("pretrain", "rl") for line in metrics)
    lost = [entry for entry in lines(out / "ledger.jsonl") if entry["stage"] == "lost"]
    assert len(lost) == 1
    assert lost[0]["wasted_s"] > 0
    trained = [entry for entry in lines(out / "ledger.jsonl") if entry["stage"] == "pretrain"]
    assert sum(entry["tokens"] for entry in trained) == STEPS * 512
    assert [entry["step_to"] for entry in trained][:-1] == [entry["step_from"] for entry in trained][1:]
    assert load_model(out / "rl").cfg.n_layers == 2
    assert (out / "rl" / "model.safetensors.index.json").is_file()
    assert not list(out.rglob("*.part"))
