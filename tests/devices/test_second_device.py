"""Training and sampling on an accelerator equal the CPU's, touch no tensor of the host, and seldom make it wait.

The accelerator is a stand-in (second_device.py) that is strict where a real one is: what passes here meets no tensor on
the wrong device there. One process serves all cases.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("worker.py")
TRAININGS = ("pretrain moe", "sft moe", "rl whole answers dense")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    path = os.pathsep.join(filter(None, [str(WORKER.parents[2] / "src"), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, str(WORKER)], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_an_accelerator_that_is_there_is_taken(found: dict[str, Any]) -> None:
    assert found["auto"] == "npu:0"


@pytest.mark.parametrize("case", TRAININGS)
def test_a_step_there_is_the_step_here_and_all_of_it_happens_there(case: str, found: dict[str, Any]) -> None:
    case_found = found[case]
    assert case_found["stays"]
    assert case_found["gap"] < 1e-5
    assert case_found["loads_equal"]
    for here, there in case_found["losses"][:2] + case_found["norms"][:2]:
        assert there == pytest.approx(here, rel=1e-5, abs=1e-6)
    here, there = case_found["mismatch"]
    assert there == pytest.approx(here, rel=1e-5)


@pytest.mark.parametrize("case", TRAININGS)
def test_a_state_saved_on_one_device_goes_on_on_the_other(case: str, found: dict[str, Any]) -> None:
    for key in ("losses", "norms"):
        here, there = found[case][key][2]
        assert there == pytest.approx(here, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", TRAININGS)
def test_a_training_step_makes_the_host_wait_once(case: str, found: dict[str, Any]) -> None:
    assert found[case]["waits"] == [{"_to_copy in train/step.py:_read": 1}] * 3


@pytest.mark.parametrize("precision", ["fp8", "fp8-power-of-two"])
def test_a_training_step_in_fp8_makes_the_host_wait_once(precision: str, found: dict[str, Any]) -> None:
    assert found["precisions"][precision] == [{"_to_copy in train/step.py:_read": 1}] * 2


def test_an_engine_there_draws_the_same_tokens(found: dict[str, Any]) -> None:
    engine = found["engine"]
    for here, there in engine["tokens"]:
        assert here == there
    assert engine["gap"] < 1e-5
    assert engine["routes_equal"]


def test_a_decode_step_makes_the_host_wait_once(found: dict[str, Any]) -> None:
    assert found["engine"]["waits_of_a_step"] == {
        "_to_copy in engine/engine.py:_sample": 1.0,
        "_to_copy in engine/runner.py:routes": 0.05,
    }


def test_the_whole_story_is_told_there_and_waits_where_it_must(found: dict[str, Any]) -> None:
    story = found["story"]
    assert story["device"] == "npu:0"
    assert story["models"] == ["base", "sft", "rl"]
    outside_of_steps = {"models/checkpoint.py:save_model", "app/story.py:_new"}
    outside_of_steps |= {"train/state.py:_copied", "train/state.py:<dictcomp>"}  # one of them, by Python's version
    once_a_step = {"train/step.py:_read", "engine/engine.py:_sample"}
    once_an_answer_or_batch = {"engine/runner.py:routes", "train/loop.py:dry_run", "eval/bits.py:_score"}
    filters = {"kernels/likely.py:keep_likely"}
    between_phases = {"runtime/device.py:carried"}  # the optimizer's state goes to the host for a rollout
    where = {wait.partition(" in ")[2] for wait in story["waits"]}
    assert where <= outside_of_steps | once_a_step | once_an_answer_or_batch | filters | between_phases
    assert between_phases <= where
