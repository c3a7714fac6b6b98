"""A judge that raises, hangs or gives no verdict is never taken for a wrong answer."""

import faulthandler
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sobre.errors import JudgeError, RunError, SandboxError
from sobre.rl import rollout
from sobre.rl.batch import minibatches, to_samples
from sobre.rl.config import RLConfig
from sobre.rl.grading import verified as judge
from sobre.rl.rollout import collect
from sobre.tasks import judging
from sobre.tasks.base import Problem
from sobre.tasks.config import TasksConfig
from sobre.tasks.format import Reward, completion, reward
from sobre.tasks.judging import Asked
from sobre.tasks.registry import TASKS

PROBLEM = Problem("moody", "en", 1, "?", "1", "moody:1", {})
CFG = RLConfig(n_prompts=1, group_size=4, max_tokens=5)


class Moody:
    """Says whatever it is made to say."""

    name = "moody"

    def __init__(self, verdicts):
        self.verdicts = iter(verdicts)

    def score(self, problem, answer):
        verdict = next(self.verdicts)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict


def give(each: Asked) -> Reward:
    return reward(*each)


def answers(n: int) -> list[Asked]:
    return [Asked(PROBLEM, completion("hm", str(i)), True) for i in range(n)]


@pytest.mark.parametrize(
    "verdict", [ZeroDivisionError("x"), KeyError("y"), float("nan"), None, 1, "yes", RecursionError()]
)
def test_whatever_is_no_verdict_is_a_fault_that_names_task_problem_and_answer(verdict, monkeypatch):
    monkeypatch.setitem(TASKS, "moody", Moody([True, verdict, False]))
    right, fault, wrong = judge(answers(3), give, limit_s=5)
    assert (right.accuracy, right.fault, wrong.accuracy, wrong.fault) == (1.0, "", 0.0, "")
    assert "judge of moody failed on moody:1, answer '1'" in fault.fault
    monkeypatch.setitem(TASKS, "moody", Moody([verdict]))
    with pytest.raises(JudgeError):
        give(answers(1)[0])


def test_a_judge_that_hangs_stops_the_run_and_is_named(monkeypatch):
    with pytest.raises(RunError, match=r"judge of moody has not answered for 0.2 s on moody:1"):
        judge(answers(2), lambda each: time.sleep(30), limit_s=0.2)


HOLDS_THE_INTERPRETER = """
import re
from sobre.tasks import judging
from sobre.tasks.base import Problem

def score(asked):
    return re.fullmatch("(a+)+b", asked.text) is not None

judging.GRACE_S = 0.5
problem = Problem("moody", "en", 1, "?", "1", "moody:1", {})
try:
    judging.judge([judging.Asked(problem, "a" * 60, True)], score, limit_s=0.5)
finally:
    print("Python went on")
"""


def test_a_judge_that_holds_the_interpreter_ends_the_process_and_its_score_function_is_named(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(HOLDS_THE_INTERPRETER)
    env = {**os.environ, "PYTHONPATH": str(Path(judging.__file__).parents[2])}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    stack = done.stderr.split("(most recent call first):")[1].splitlines()
    assert done.stderr.startswith("Timeout (0:00:01)!")
    assert stack[1:3][-1].endswith('mine.py", line 7 in score')  # under the one of re
    assert "it held the interpreter past judge_s, and the process was ended" in done.stderr


def test_the_timer_goes_on_with_every_answer_and_is_taken_back(monkeypatch):
    set_to, taken_back = [], []
    monkeypatch.setattr(
        faulthandler, "dump_traceback_later", lambda after_s, *, exit, file: set_to.append((after_s, exit, file))
    )
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: taken_back.append(len(set_to)))
    judge(answers(3), lambda each: Reward(0.0, 0.0, 0.0), limit_s=20)
    assert set(set_to) == {(20 + judging.GRACE_S, True, 2)}
    assert taken_back == [len(set_to)]
    with pytest.raises(RunError):
        judge(answers(1), lambda each: time.sleep(30), limit_s=0.1)
    assert taken_back[1:] == [len(set_to)]
    assert [after_s for after_s, *_ in set_to].count(0.1 + judging.GRACE_S) >= 2  # before the thread and at every turn


def test_what_no_answer_is_to_blame_for_ends_the_run():
    def broken(each):
        raise SandboxError("no sandbox here")

    with pytest.raises(SandboxError, match="no sandbox here"):
        judge(answers(2), broken, limit_s=5)


def test_code_is_judged_side_by_side_and_in_order():
    code = [Asked(replace(PROBLEM, data={"judge": "code"}), str(i), True) for i in range(8)]
    threads = set()

    def slow(each):
        time.sleep(0.02 * (7 - int(each.text)))
        threads.add(each.text)
        return Reward(0.0, 0.0, float(each.text))

    assert [found.total for found in judge(code, slow, limit_s=5)] == list(range(8))


def test_an_answer_without_a_verdict_moves_nothing_and_is_counted(make, monkeypatch):
    verdicts = iter([1.0, 0.0, None, 0.0])

    def reward(*_, **__):
        found = next(verdicts)
        return Reward(0.0, 0.0, 0.0, fault="it raised") if found is None else Reward(found, 0.0, found)

    monkeypatch.setattr(rollout, "reward", reward)
    engine = make.engine(lambda request: ([9, make.eos], True))
    rollouts = collect(engine, make.tokenizer, lambda round_, n: [PROBLEM] * n, CFG, TasksConfig(), seed=0)
    metrics = rollouts.metrics()
    assert (metrics["unjudged"], metrics["n_answers"]) == (1, 3)
    assert metrics["pass_rate"] == rollouts.groups[0].pass_rate == pytest.approx(1 / 3)
    samples = to_samples(rollouts.groups, CFG)
    assert [sample.weight for sample in samples] == [1, 1, 0, 1]
    assert [sample.advantage for sample in samples] == pytest.approx([2 / 3, -1 / 3, 0, -1 / 3])
    assert sum(map(len, minibatches(samples, CFG, "k"))) == 3


def test_a_step_in_which_most_answers_cannot_be_judged_stops_the_run(make, monkeypatch):
    monkeypatch.setattr(rollout, "reward", lambda *_, **__: Reward(0.0, 0.0, 0.0, fault="it raised KeyError"))
    engine = make.engine(lambda request: ([9, make.eos], True))
    with pytest.raises(RunError, match="8 of 8 answers could not be judged; the first: it raised KeyError"):
        collect(engine, make.tokenizer, lambda round_, n: [PROBLEM] * n, CFG, TasksConfig(), seed=0)


def test_empty_and_endless_answers_are_counted(make):
    words = iter([([make.eos], True), ([], False), ([9] * 5, False), ([9, make.eos], True)])
    engine = make.engine(lambda request: next(words))
    cfg = replace(CFG, algorithm=replace(CFG.algorithm, refill_rounds=0))
    rollouts = collect(engine, make.tokenizer, lambda round_, n: [PROBLEM] * n, cfg, TasksConfig(), seed=0)
    metrics = rollouts.metrics()
    assert metrics["empty"] == 0.5
    assert metrics["truncated"] == 0.5
    assert metrics["reward"] == 0
