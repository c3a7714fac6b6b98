"""Samplers on a real Ray, which the run starts itself: the numbers of one process, whoever is killed on the way.

Skipped where Ray is not installed (`pip install 'sobre[ray]'`): it is 80 MB, and no other test needs it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sobre.train.state import saved_steps

from .conftest import environment

pytest.importorskip("ray", reason="samplers on Ray: pip install 'sobre[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CHILD = """
import sys

import torch

from sobre.cli import main
from sobre.rl import rollout
from sobre.runtime import device
from sobre.app import prepare
from sobre.tasks.format import Reward

torch.set_num_threads(1)
prepare.choose_threads = lambda: 1
# the model solves nothing: an answer earns by its letters
rollout.reward = lambda problem, text, finished, **_: Reward(0.0, 0.0, sum(map(str.islower, text)) / 100)
sys.exit(main(sys.argv[1:]))
"""
FAILING = """
from sobre.engine.config import EngineConfig
from sobre.engine.request import Request, SamplingParams
from sobre.errors import RunError
from sobre.models.config import DenseConfig, GQAConfig, ModelConfig
from sobre.models.decoder import Decoder
from sobre.rl.config import SamplersConfig
from sobre.rl.ray_pool import RayPool
from sobre.rl.worker import weights_of

cfg = ModelConfig(vocab_size=31, max_len=64, d_model=16, n_layers=1, attention=GQAConfig(), ffn=DenseConfig(d_ff=16))
model = Decoder(cfg)
model.init_weights(0)
for engine, n in ((EngineConfig(max_batch=2), 100), (EngineConfig(cache_tokens=1), 4)):
    pool = RayPool(model, engine, SamplersConfig(workers=1), run_seed=0, say=print)
    pool.push(0, weights_of(model))
    try:
        pool.finish([Request("a", (1, 2), SamplingParams(max_tokens=n))])
    except RunError as error:
        print(error)
    pool.close()
"""
STEPS = 6
FLAGS = ["nano", "--stages", "pretrain", "rl", "--pretrain.steps", "2", "--model.max-len", "256"]
FLAGS += ["--engine.deterministic", "--save.every-s", "0", "--rl.steps", str(STEPS), "--rl.lr-scale", "1.0"]
FLAGS += [
    "--rl.n-prompts",
    "4",
    "--rl.group-size",
    "4",
    "--rl.max-tokens",
    "100",
    "--rl.curriculum.difficulty",
    "1",
    "1",
]
COST = {"time_s", "used", "flops", "tokens_per_s", "rollout_s", "rollout_flops", "wasted_flops", "save_s"}
"""What a metric line says of real seconds, and of prompts that two engines compute each for itself."""
APART = {"staleness", "staleness_max", "lost_answers", "lost_s"}


class Run:
    """`sobre run` with samplers on Ray, in a session of its own."""

    def __init__(self, script: Path, out: Path, *flags: str) -> None:
        command = [sys.executable, str(script), "run", *FLAGS, "--out", str(out), *flags]
        self.out, self._errors = out, out.with_suffix(".errors")
        with self._errors.open("a") as file:
            self.process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=file)

    @property
    def said(self) -> str:
        return self._errors.read_text()

    def finish(self) -> None:
        assert self.process.wait(timeout=500) == 0, self.said[-3000:]

    def wait_until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not happened():
            assert self.process.poll() is None, self.said[-3000:]
            assert time.monotonic() < deadline, self.said[-3000:]
            time.sleep(0.01)

    def has_learned(self, step: int) -> bool:
        return any(saved >= step for saved in saved_steps(self.out / "state" / "rl"))

    def kill_a_sampler_at_work(self) -> None:
        """kill -9 in the middle of an answer."""
        os.kill(self.stop_a_sampler_at_work(), signal.SIGKILL)

    def stop_a_sampler_at_work(self) -> int:
        """SIGSTOP in the middle of an answer: it stands still when it is looked at again. Its process id."""
        caught: list[int] = []

        def is_done() -> bool:
            for pid in at_work(self.process.pid):
                os.kill(pid, signal.SIGSTOP)
                if pid in at_work(self.process.pid):
                    caught.append(pid)
                    return True
                os.kill(pid, signal.SIGCONT)
            return False

        self.wait_until(is_done)
        return caught[0]


def at_work(learner: int) -> list[int]:
    """Processes of samplers that are answering right now; Ray gives a process the name of what it does."""
    parents = {pid: stat[1] for pid, stat in processes()}
    found = []
    for pid, stat in processes():
        if stat[0].startswith("ray::Worker.gen"):
            above = pid
            while above in parents and above != learner:
                above = parents[above]
            found += [pid] if above == learner else []
    return found


def processes() -> Iterator[tuple[int, tuple[str, int]]]:
    """(id, (name, id of the parent)) of all that run."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            _, name, rest = folder.joinpath("stat").read_text().replace("(", ")").split(")", 2)
            name = folder.joinpath("cmdline").read_text().strip("\0") or name
        except OSError:  # it has ended since
            continue
        yield int(folder.name), (name, int(rest.split()[1]))


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("ray") / "child.py"
    found.write_text(CHILD)
    return found


@pytest.fixture(scope="module")
def alone(script: Path) -> Path:
    """A run whose learner samples, without Ray."""
    run = Run(script, script.parent / "alone")
    run.finish()
    return run.out


def metrics(out: Path, *, without: set[str]) -> list[dict]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in without} for line in lines]


def ledger(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]


def weights(out: Path) -> list[bytes]:
    files = sorted((out / "rl").glob("*.safetensors"))
    assert files, f"no weights in {out}"
    return [file.read_bytes() for file in files]


def test_synchronous_samplers_give_the_numbers_of_one_process_though_one_of_them_and_the_learner_are_killed(
    script: Path, alone: Path, tmp_path: Path
) -> None:
    run = Run(script, tmp_path / "run", "--rl.samplers.workers", "2")
    run.wait_until(lambda: run.has_learned(1))
    run.kill_a_sampler_at_work()
    run.wait_until(lambda: run.has_learned(3))
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    again = Run(script, tmp_path / "run", "--rl.samplers.workers", "2", "--resume")
    again.finish()

    assert weights(run.out) == weights(alone)
    assert metrics(run.out, without=COST | APART) == metrics(alone, without=COST)
    lines = [line for line in metrics(run.out, without=set()) if line["stage"] == "rl"]
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert {line["staleness_max"] for line in lines} == {0}
    lost = [(line["lost_answers"], line["lost_s"]) for line in lines if line["lost_answers"]]
    assert len(lost) == 1
    assert 1 <= lost[0][0] <= 8
    assert lost[0][1] > 0
    wasted_s = sum(line["lost_s"] + line["rollout_s"] * line["wasted_share"] for line in lines)
    assert sum(entry["wasted_s"] for entry in ledger(run.out) if entry["stage"] == "rl") == pytest.approx(wasted_s)
    assert sum(entry["tokens"] for entry in ledger(run.out)) == sum(entry["tokens"] for entry in ledger(alone))
    assert run.said.count("a sampler died") == 1
    assert "requests go back to the queue" in run.said


def test_a_sampler_that_is_stopped_is_replaced_with_the_numbers_of_one_process(
    script: Path, alone: Path, tmp_path: Path
) -> None:
    run = Run(script, tmp_path / "run", "--rl.samplers.workers", "2", "--rl.samplers.timeout-s", "40")
    run.wait_until(lambda: run.has_learned(1))
    stopped = run.stop_a_sampler_at_work()
    try:
        run.finish()
        assert not Path(f"/proc/{stopped}").exists()
    finally:
        with suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGKILL)
    assert weights(run.out) == weights(alone)
    assert metrics(run.out, without=COST | APART) == metrics(alone, without=COST)
    assert run.said.count("rl: a sampler hangs (no answer in 40 s); another is started") == 1
    assert sum(line["lost_answers"] for line in metrics(run.out, without=set()) if line["stage"] == "rl") > 0


def test_two_learners_under_torchrun_share_the_samplers_with_the_numbers_of_two_that_sample(
    script: Path, tmp_path: Path, torchrun: Callable[..., str]
) -> None:
    command = (str(script), "run", *FLAGS, "--parallel.shards", "2", "--rl.steps", "3")
    torchrun(2, *command, "--out", str(tmp_path / "own"))
    torchrun(2, *command, "--out", str(tmp_path / "ray"), "--rl.samplers.workers", "2")
    assert weights(tmp_path / "ray") == weights(tmp_path / "own")
    own, apart = (metrics(tmp_path / name, without=COST | APART) for name in ("own", "ray"))
    assert apart == own


def test_stale_samplers_are_one_update_behind_and_give_the_same_numbers_whoever_samples_and_dies(
    script: Path, alone: Path, tmp_path: Path
) -> None:
    flags = ["--rl.samplers.staleness", "1", "--rl.max-correction", "2.0"]
    run = Run(script, tmp_path / "killed", "--rl.samplers.workers", "2", *flags)
    run.wait_until(lambda: run.has_learned(2))
    run.kill_a_sampler_at_work()
    other = Run(script, tmp_path / "one", "--rl.samplers.workers", "1", *flags)
    run.finish()
    other.finish()

    assert weights(run.out) == weights(other.out) != weights(alone)
    lines = [line for line in metrics(run.out, without=set()) if line["stage"] == "rl"]
    assert [line["staleness_max"] for line in lines] == [0, 1, 1, 1, 1, 1]
    assert sum(line["lost_answers"] for line in lines) > 0
    assert "logp_gap_max" not in lines[-1]  # what differs is the policy, not the engine
    alike = COST | {"lost_answers", "lost_s"}
    assert metrics(run.out, without=alike) == metrics(other.out, without=alike)


def test_what_a_sampler_refuses_is_said_and_one_that_dies_again_and_again_is_not_started_for_ever(
    tmp_path: Path,
) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    done = subprocess.run([sys.executable, script], env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "a sampler failed: request 'a': prompt of 2 tokens + max_tokens=100" in done.stdout
    assert done.stdout.count("rl: a sampler died") == 2
    assert "3 samplers failed over the same 1 requests; the last died: " in done.stdout
    assert "engine.cache_tokens=1 does not hold one request of 64 tokens" in done.stdout
