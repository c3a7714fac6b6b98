"""Judge the answers of a step: in time, and with every failure of a judge told apart from a wrong answer.

A judge is code that someone wrote for a task. When it raises, returns no verdict, or finds nothing in time, the answer
was not judged: it is left out of the loss, counted and shown. Where that is so of more than half of a step's answers,
nothing can be trusted, and the run stops with the first failure. A judge in Python cannot be ended from outside, so
one that hangs stops the run too.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sobre.errors import JudgeError, RunError
from sobre.tasks.base import Problem
from sobre.tasks.format import Reward

MOST_FAILED = 0.5
"""Share of a step's answers that may remain without a verdict."""


class Asked(NamedTuple):
    """One answer to be judged."""

    problem: Problem
    text: str
    finished: bool


Give = Callable[[Asked], Reward]


def judge(asked: Sequence[Asked], give: Give, *, limit_s: float) -> list[Reward]:
    """The reward of each answer, in order; code is tested on all cores, everything else is too short to share out."""
    has_code = any(each.problem.data.get("judge") == "code" for each in asked)
    work = _Work(asked, give)
    n_workers = min(len(asked), os.cpu_count() or 1) if has_code else 1
    for _ in range(n_workers):
        threading.Thread(target=work.run, daemon=True).start()  # a daemon: one that hangs must not keep the process
    return work.wait(limit_s)


def check(rewards: Sequence[Reward]) -> None:
    """Stop where too few answers were judged."""
    faults = [reward.fault for reward in rewards if reward.fault]
    if len(faults) > MOST_FAILED * len(rewards):
        raise RunError(f"{len(faults)} of {len(rewards)} answers could not be judged; the first: {faults[0]}")


@dataclass
class _Work:
    asked: Sequence[Asked]
    give: Give
    found: dict[int, Reward | BaseException] = field(default_factory=dict)
    begun: dict[int, float] = field(default_factory=dict)
    news: threading.Condition = field(default_factory=threading.Condition)

    def run(self) -> None:
        while True:
            with self.news:
                number = len(self.begun)
                if number == len(self.asked):
                    return
                self.begun[number] = time.monotonic()
            try:
                verdict: Reward | BaseException = self.give(self.asked[number])
            except JudgeError as error:
                verdict = Reward(0.0, 0.0, 0.0, fault=str(error))
            except BaseException as error:  # no verdict on one answer, but something that ends the run
                verdict = error
            with self.news:
                self.found[number] = verdict
                self.news.notify()

    def wait(self, limit_s: float) -> list[Reward]:
        with self.news:
            while len(self.found) < len(self.asked):
                open_ = [number for number in self.begun if number not in self.found]
                late = [number for number in open_ if time.monotonic() - self.begun[number] > limit_s]
                if late:
                    problem = self.asked[late[0]].problem
                    raise RunError(
                        f"the judge of {problem.task} has not answered for {limit_s:g} s on {problem.key} (rl.judge_s);"
                        f" the answer begins {self.asked[late[0]].text[:80]!r}"
                    )
                self.news.wait(timeout=min(1.0, limit_s))
        rewards = []
        for number in range(len(self.asked)):
            verdict = self.found[number]
            if isinstance(verdict, BaseException):
                raise verdict
            rewards.append(verdict)
        return rewards
