"""kill -9 at random moments: the resumed run ends with the same weights, metrics and bill as one that nobody touched.

Clock and measured speed are injected: the clock moves by a fixed, uneven amount with every training step, so that a
time budget decides the horizons and the ends of the stages, and decides them alike in every run.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

CHILD = '''
import sys
from pathlib import Path

import torch

from sobre.app import prepare
from sobre.app.session import Session
from sobre.app.story import tell
from sobre.config.load import Layer, decode, to_dict
from sobre.config.recipe import Recipe, load_recipe
from sobre.config.load import NoOptions
from sobre.distill import choose
from sobre.runtime.console import Console
from sobre.runtime.device import Calibration
from sobre.runtime.run_folder import claim, resume
from sobre.train import loop

torch.set_num_threads(1)


class StepClock:
    """Seconds that pass only while training: 1.0, 1.3, 0.8, 1.0, ... a step."""

    def __init__(self):
        self.seconds = 0.0

    def now(self):
        return self.seconds


clock = StepClock()
speed = {"fp32_flops": 3e9, "bf16_flops": 3e9, "fp32_best": 3e9, "bf16_best": 3e9, "bytes_per_s": 1e10}
prepare.choose_threads = lambda: 1
prepare.calibrate = lambda device: Calibration(name="test", device="cpu", threads=1, seconds=0.0, **speed)
true_step = loop._step


def step_with_time(stage, feed, lr, step):
    info = true_step(stage, feed, lr, step)
    clock.seconds += (1.0, 1.3, 0.8)[int(info.loss * 1e4) % 3]  # uneven, and the same wherever the step runs
    return info


loop._step = step_with_time
# the model solves nothing: an answer is learned from or not by its letters
choose.Choice._fate = lambda self, problem, reply, mark, kept: "kept" if reply.text.count("e") % 2 else "wrong"
recipe, _ = load_recipe(["nano", *sys.argv[3:]], NoOptions)
out = Path(sys.argv[1])
if sys.argv[2] == "resume":
    folder = resume(out)
    recipe = decode(Recipe, [Layer(str(out), folder.config)])
else:
    folder = claim(recipe.name, to_dict(recipe), out=out)
with Console(quiet=True) as console:
    tell(Session.open(recipe, folder, console, clock=clock))
'''
FIXED = ["--save.every-s", "0.0", "--pretrain.steps", "8", "--sft.steps", "8", "--rl.steps", "8"]
FIXED += [
    "--stages",
    "pretrain",
    "sft",
    "rl",
    "sft2",
    "distill",
    "--start.sft2",
    "pretrain",
    "--start.distill",
    "nothing",
]
FIXED += [
    "--sft2.answers.teacher",
    "rl",
    "--sft2.answers.n-problems",
    "80",
    "--sft2.answers.k",
    "2",
    "--sft2.steps",
    "6",
]
FIXED += ["--distill.method", "on_policy", "--distill.answers.teacher", "sft2", "--distill.n-prompts", "4"]
FIXED += ["--distill.max-tokens", "8", "--distill.steps", "8", "--sft2.answers.max-tokens", "8"]
FIXED += ["--sft2.batch-tokens", "512", "--distill.student.d-model", "16", "--distill.student.n-layers", "1"]
TIMED = ["--save.every-s", "0.0", "--budget", "90s", "--pretrain.steps", "0", "--sft.steps", "0", "--rl.steps", "0"]
CLOCKED = {"time_s", "used", "tokens_per_s", "rollout_s", "save_s"}
"""What a metric line says of real seconds."""


DIES = '''
import os
import signal

from sobre.engine.engine import Engine
from sobre.optim.optimizer import Optimizer
from sobre.rl import rollout
from sobre.tasks.format import Reward
from sobre.train.state import Saving

place, times = os.environ.get("DIES_AT", "nowhere 0").split()
left, rolling = int(times), False


def dies(owner, name, where, *, when=lambda: True, first=lambda true, *args: None):
    """In the process that is told this place, so many calls end well, and the last one with kill -9 after `first`."""
    true = getattr(owner, name)

    def call(*args, **kwargs):
        global left
        if where == place and when():
            left -= 1
            if left == 0:
                first(true, *args)
                os.kill(os.getpid(), signal.SIGKILL)
        return true(*args, **kwargs)

    setattr(owner, name, call)


def converse(*args):
    global rolling
    rolling = True
    spoken = true_converse(*args)
    rolling = False
    return spoken


def halve(true, saving, path):
    os.truncate(path, path.stat().st_size // 2)


true_converse, rollout.converse = rollout.converse, converse
rollout.reward = lambda problem, text, finished, **_: Reward(0.0, 0.0, sum(map(str.islower, text)) / 100)
dies(Engine, "_advance", "rollout", when=lambda: rolling)
dies(Optimizer, "step", "update", first=lambda true, *args: true(*args))
dies(Saving, "_seal", "save", first=halve)
dies(Saving, "finish", "bill", first=lambda true, *args: true(*args))
'''
"""Answers half sampled; weights changed and not saved; a state half written; a state published and not yet billed."""
MARKERS = ["state/tokenizer/*", "state/pretrain/step-*", "base/config.json", "state/sft/step-*2", "state/rl/step-*"]
PATH_MARKERS = [*MARKERS[3:], "state/answers/sft2/part-0001*", "state/sft2/step-*", "state/distill/step-*"]
"""A kill comes a random moment after each of these appears: in the preparation, in every stage, and between stages."""


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not any(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        assert time.monotonic() < deadline, f"{pattern} did not appear"
        time.sleep(0.01)


def start(script: Path, out: Path, mode: str, flags: list[str], dies_at: str = "") -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SOBRE_NO_REEXEC": "1"}
    environment |= {"DIES_AT": dies_at} if dies_at else {}
    command = [sys.executable, str(script), str(out), mode, *flags]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()[-2000:]


def metrics(out: Path) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKED} for line in lines]


def useful_tokens(out: Path) -> dict[str, int]:
    sums: dict[str, int] = defaultdict(int)
    for line in (out / "ledger.jsonl").read_text().splitlines():
        entry = json.loads(line)
        sums[entry["stage"]] += entry["tokens"]
    sums.pop("lost", None)
    return dict(sums)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("flags", "markers"), [(FIXED, PATH_MARKERS), (TIMED, MARKERS)], ids=["fixed steps, R1's path", "time budget"]
)
def test_a_run_killed_at_random_moments_ends_like_one_left_alone(flags, markers, tmp_path: Path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    finish(start(script, alone, "new", flags))
    rng = random.Random(7)
    for marker in markers:
        process = start(script, killed, "resume" if (killed / "config.json").is_file() else "new", flags)
        wait_for(killed, marker, process)
        time.sleep(rng.uniform(0.0, 0.4))
        assert process.poll() is None, f"the run ended before it could be killed after {marker}"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(script, killed, "resume", flags))
    stages = ("pretrain", "sft", "rl", "sft2", "distill") if flags is FIXED else ("pretrain", "sft", "rl")
    for stage in ("base", *stages[1:]):
        one, other = ((out / stage / "model.safetensors").read_bytes() for out in (alone, killed))
        assert one == other, stage
    assert metrics(killed) == metrics(alone)
    assert useful_tokens(killed) == useful_tokens(alone)
    for stage in stages:
        one, other = (json.loads((out / "eval" / f"{stage}.json").read_text()) for out in (alone, killed))
        assert one == other
    if flags is FIXED:
        one, other = ((out / "answers" / "sft2.jsonl").read_text() for out in (alone, killed))
        assert one == other
    else:
        events = [json.loads(line) for line in (killed / "state" / "events.jsonl").read_text().splitlines()]
        assert {event["kind"] for event in events} >= {"begin", "horizon", "end"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_adapters_killed_as_they_train_end_like_those_left_alone(tmp_path: Path):
    script = tmp_path / "run.py"
    script.write_text(CHILD)
    finish(
        start(
            script,
            tmp_path / "base",
            "new",
            ["--stages", "pretrain", "sft", "--pretrain.steps", "4", "--sft.steps", "2"],
        )
    )
    model = str(tmp_path / "base" / "base")
    flags = ["--stages", "sft", "--start.model", model, "--sft.steps", "8", "--save.every-s", "0.0"]
    flags += ["--lora.rank", "4", "--optim.lr-adam", "0.02"]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    finish(start(script, alone, "new", flags))
    process = start(script, killed, "new", flags)
    wait_for(killed, "state/sft/step-*2", process)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finish(start(script, killed, "resume", flags))
    one, other = ((out / "sft" / "adapter_model.safetensors").read_bytes() for out in (alone, killed))
    assert one == other
    assert metrics(killed) == metrics(alone)
    assert useful_tokens(killed) == useful_tokens(alone)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rl_killed_in_a_rollout_an_update_a_save_and_before_the_bill_ends_like_one_left_alone(tmp_path: Path):
    script = tmp_path / "child.py"
    script.write_text(CHILD.replace("recipe, _ =", f"{DIES}\nrecipe, _ =", 1))
    flags = ["--stages", "pretrain", "rl", "--pretrain.steps", "2", "--rl.steps", "6", "--save.every-s", "0.0"]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    finish(start(script, alone, "new", flags))
    assert [line["grad_norm"] > 0 for line in metrics(alone) if line["stage"] == "rl"] == [True] * 6
    reached = []
    for dies_at in ("rollout 40", "update 1", "save 1", "bill 1"):
        process = start(script, killed, "resume" if (killed / "config.json").is_file() else "new", flags, dies_at)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == -signal.SIGKILL, f"{dies_at}: {errors.decode()[-2000:]}"
        reached.append(max(int(path.name[5:13]) for path in (killed / "state" / "rl").glob("step-*[0-9]")))
    assert reached[0] >= 1  # in a later rollout than the first
    assert reached == [reached[0], reached[0], reached[0], reached[0] + 1]
    finish(start(script, killed, "resume", flags))
    one, other = ((out / "rl" / "model.safetensors").read_bytes() for out in (alone, killed))
    assert one == other
    assert metrics(killed) == metrics(alone)
    assert useful_tokens(killed) == useful_tokens(alone)
    lost = [json.loads(line) for line in (killed / "ledger.jsonl").read_text().splitlines() if "lost" in line]
    assert lost
