"""Processes hang and are killed, a step is NaN, a whole machine disappears: the run goes on from the last saved step.

These take minutes and are a part of `make matrix`, which sets SOBRE_MATRIX=1.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

import pytest

from sobre.models.checkpoint import load_model
from sobre.train.state import saved_steps

from .conftest import environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(500),
    pytest.mark.skipif(not os.environ.get("SOBRE_MATRIX"), reason="takes minutes: make matrix"),
]
STEPS = 120
SPOILED = Path(__file__).with_name("spoiled.py")
DYING = Path(__file__).with_name("dying.py")
FLAGS = [
    *("--parallel.shards", "2", "--parallel.experts", "2", "--parallel.timeout-s", "4"),
    *("--pretrain.steps", str(STEPS), "--save.every-s", "2.5", "--stages", "pretrain", "rl"),
]


def workers(launcher: Popen[str]) -> list[int]:
    """Process ids, in the order of their start."""
    return sorted(map(int, Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()))


class Run:
    """A run under torchrun in `out`, whose errors go to a file that is read while it runs."""

    def __init__(self, out: Path, process: Popen[str], errors: Path) -> None:
        self.out, self.process, self._errors = out, process, errors

    def errors(self) -> str:
        return self._errors.read_text()

    def wait_until(self, happened: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 150
        while not happened():
            assert self.process.poll() is None, self.errors()[-3000:]
            assert time.monotonic() < deadline, f"{what} did not come: {self.errors()[-3000:]}"
            time.sleep(0.02)

    def worker(self, number: int) -> int:
        """The process id of a worker, in the order of their start."""
        return workers(self.process)[number]

    def lines(self, name: str) -> list[dict]:
        path = self.out / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def has_steps_after_the_last_state(self, above: int = 0) -> bool:
        saved = saved_steps(self.out / "state" / "pretrain")
        return bool(saved) and saved[-1] > above and len(self.lines("metrics.jsonl")) > saved[-1]


def test_a_process_that_hangs_is_named_and_one_that_is_killed_costs_only_the_steps_after_the_last_state(
    tmp_path: Path, launch: Callable[..., Popen[str]]
) -> None:
    out, errors = tmp_path / "run", tmp_path / "errors"
    command = ("-m", "sobre", "run", "nano", "--out", str(out), *FLAGS)
    run = Run(out, launch(2, *command, restarts=2, errors=errors), errors)
    run.wait_until(run.has_steps_after_the_last_state, "a step after a saved state")
    hung = run.worker(1)
    os.kill(hung, signal.SIGSTOP)
    run.wait_until(lambda: "process 1 does not answer: it hangs or is dead" in run.errors(), "the name of who hangs")
    os.kill(hung, signal.SIGCONT)
    went_on = "resume: pretrain goes on after step"
    run.wait_until(lambda: run.errors().count(went_on) == 1, "the second attempt")
    begun = saved_steps(run.out / "state" / "pretrain")[-1]
    run.wait_until(lambda: run.has_steps_after_the_last_state(begun), "another state, and a step after it")
    os.kill(run.worker(1), signal.SIGKILL)
    assert run.process.wait(timeout=200) == 0, run.errors()[-3000:]
    assert run.errors().count(went_on) == 2

    metrics = run.lines("metrics.jsonl")
    assert [line["step"] for line in metrics if line["stage"] == "pretrain"] == list(range(STEPS))
    assert any("slowest_process" in line for line in metrics)
    ledger = run.lines("ledger.jsonl")
    lost = [entry for entry in ledger if entry["stage"] == "lost"]
    assert len(lost) == 2
    assert lost[0]["wasted_s"] >= 4, "the others waited for parallel.timeout_s, and then all began again"
    assert lost[1]["wasted_s"] > 0
    trained = [entry for entry in ledger if entry["stage"] == "pretrain"]
    assert sum(entry["tokens"] for entry in trained) == STEPS * 512
    assert [entry["step_to"] for entry in trained][:-1] == [entry["step_from"] for entry in trained][1:]
    assert load_model(run.out / "rl").cfg.n_layers == 2
    assert (run.out / "rl" / "model.safetensors.index.json").is_file()
    assert not list(run.out.rglob("*.part"))


SHORT = 8
"""Steps of each stage of a run that is killed at a place."""


def short(out: Path) -> list[str]:
    """A run of two stages, which saves after every step."""
    flags = ["--parallel.shards", "2", "--stages", "pretrain", "sft", "--save.every-s", "0"]
    steps = ["--pretrain.steps", str(SHORT), "--sft.steps", str(SHORT)]
    return ["run", "nano", "--out", str(out), *flags, *steps]


def learned(out: Path) -> list[tuple[str, int, float]]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [(line["stage"], line["step"], line["loss"]) for line in lines]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory, torchrun: Callable[..., str]) -> Path:
    """The folder of such a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("untouched") / "run"
    torchrun(2, "-m", "sobre", *short(out))
    return out


@pytest.mark.parametrize("dies", ["step 0", "save 0", "save 1", "export 1"])
def test_a_run_one_of_whose_processes_is_killed_at_a_place_ends_like_one_left_alone(
    dies: str, untouched: Path, tmp_path: Path, torchrun: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setenv("SOBRE_TEST_DIES", dies)
    torchrun(2, str(DYING), *short(out), restarts=1)
    before, after = (
        [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()] for folder in (untouched, out)
    )
    lost = [entry for entry in after if entry["stage"] == "lost"]
    assert [entry["wasted_s"] > 0 for entry in lost] == [True], "one process was killed, once"
    assert learned(out) == learned(untouched)
    for name in ("base", "sft"):
        one, other = (load_model(folder / name).state_dict() for folder in (untouched, out))
        assert all(tensor.equal(other[key]) for key, tensor in one.items()), name
    useful, tokens = ([(e["stage"], e["step_to"], e["tokens"]) for e in bill] for bill in (before, after))
    assert [entry for entry in tokens if entry[0] != "lost"] == useful
    assert not [path for path in out.rglob("*") if path.suffix in (".part", ".old") or path.name.startswith("part-")]


def test_a_step_that_is_nan_in_one_process_is_refused_and_the_run_begins_again_from_the_last_state(
    tmp_path: Path, launch: Callable[..., Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 40
    out, errors = tmp_path / "run", tmp_path / "errors"
    monkeypatch.setenv("SOBRE_TEST_STATES", str(out / "state" / "pretrain"))
    flags = ("--parallel.shards", "2", "--pretrain.steps", str(steps), "--save.every-s", "0.5", "--stages", "pretrain")
    story = (str(SPOILED), "run", "nano", "--out", str(out), *flags, "--trace", str(steps - 1))
    run = Run(out, launch(2, *story, restarts=1, errors=errors), errors)
    assert run.process.wait(timeout=240) == 0, run.errors()[-3000:]
    refused = re.search(r"pretrain, step (\d+): loss=nan and gradient norm=nan must be finite; the step", run.errors())
    went_on = re.findall(r"resume: pretrain goes on after step (\d+)", run.errors())
    assert refused is not None
    assert len(went_on) == 1
    assert int(refused[1]) == int(went_on[0]) + 2
    assert [line["step"] for line in run.lines("metrics.jsonl")] == list(range(steps))
    ledger = run.lines("ledger.jsonl")
    lost = [entry for entry in ledger if entry["stage"] == "lost"]
    assert len(lost) == 1
    assert lost[0]["wasted_s"] == lost[0]["wall_s"] > 0
    trained = [entry for entry in ledger if entry["stage"] == "pretrain"]
    assert [entry["step_from"] for entry in trained] == [0, *(entry["step_to"] for entry in trained[:-1])]
    assert sum(entry["tokens"] for entry in trained) == steps * 512
    assert load_model(out / "base").cfg.n_layers == 2
    for rank in range(2):
        trace = json.loads((out / "state" / "trace" / "pretrain" / f"process-{rank}.json").read_text())
        assert {"aten::mm", "gloo:all_gather"} <= {event["name"] for event in trace["traceEvents"]}


def test_the_processes_of_an_agent_that_is_killed_finish_and_nobody_joins_them(
    tmp_path: Path, launch: Callable[..., Popen[str]]
) -> None:
    out, errors = tmp_path / "run", tmp_path / "errors"
    flags = ("--parallel.shards", "2", "--pretrain.steps", str(STEPS), "--save.every-s", "1", "--stages", "pretrain")
    run = Run(out, launch(2, "-m", "sobre", "run", "nano", "--out", str(out), *flags, errors=errors), errors)
    run.wait_until(lambda: bool(saved_steps(out / "state" / "pretrain")), "a saved state")
    left = workers(run.process)
    try:
        run.process.kill()
        run.process.wait(timeout=60)
        again = [sys.executable, "-m", "sobre", "run", "--out", str(out), "--resume"]
        refused = subprocess.run(again, env=environment(), capture_output=True, text=True, timeout=60)
        assert refused.returncode == 1
        assert f"a process (pid {left[0]}) is working in {out}" in refused.stderr
        deadline = time.monotonic() + 150
        while any(Path(f"/proc/{pid}").exists() for pid in left):
            assert time.monotonic() < deadline, run.errors()[-3000:]
            time.sleep(0.1)
    finally:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert [line["step"] for line in run.lines("metrics.jsonl")] == list(range(STEPS))
    assert load_model(out / "base").cfg.n_layers == 2


def test_a_run_goes_on_with_the_processes_that_are_left_when_a_machine_disappears(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meet = ["--rdzv-backend", "c10d", "--rdzv-id", "both", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    meet += ["--rdzv-conf", "last_call_timeout=3", "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3"]
    out = tmp_path / "run"
    flags = ["--parallel.shards", "0", "--parallel.timeout-s", "10", "--pretrain.steps", str(STEPS)]
    story = ["-m", "sobre", "run", "nano", "--out", str(out), *flags, "--save.every-s", "1", "--stages", "pretrain"]
    line = [sys.executable, "-m", "torch.distributed.run", *meet, *story]
    machines: list[Popen[str]] = []
    try:
        for number in range(2):
            with (tmp_path / f"errors{number}").open("w") as file:
                settings = {**environment(), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
                machines.append(Popen(line, env=settings, stdout=subprocess.DEVNULL, stderr=file, text=True))
            time.sleep(1)  # the first holds the store
        run = Run(out, machines[0], tmp_path / "errors0")
        run.wait_until(lambda: bool(saved_steps(out / "state" / "pretrain")), "a saved state")
        for pid in (machines[1].pid, *workers(machines[1])):
            os.kill(pid, signal.SIGKILL)
        assert machines[0].wait(timeout=240) == 0, run.errors()[-3000:]
    finally:
        for machine in machines:
            if machine.poll() is None:
                machine.terminate()
            machine.wait(timeout=60)
    assert ": 2 processes" in run.errors() or ": 2 processes" in (tmp_path / "errors1").read_text()
    assert "resume: pretrain goes on after step" in run.errors()
    assert [line["step"] for line in run.lines("metrics.jsonl")] == list(range(STEPS))
    assert load_model(out / "base").cfg.n_layers == 2
