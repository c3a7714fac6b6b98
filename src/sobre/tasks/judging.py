"""Judge many answers: in time, and with every failure of a judge told apart from a wrong answer.

A judge is code that someone wrote for a task. When it raises or returns no verdict, the answer was not judged: it is
left out of losses and figures, counted and shown. Where that is so of more than half of the answers, nothing can be
trusted, and the run stops with the first failure. A judge in Python cannot be ended from outside, so one that hangs
stops the run too. One that holds the interpreter (a regular expression that backtracks without end) lets no Python run
at all: then a timer in C shows where every thread is, the score function on top, and ends the process with exit code 1,
as a kill would; the run goes on from its last saved step. Rewards, examinations, evaluations and the choice of a
teacher's answers all come through here.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from sobre.errors import JudgeError, RunError
from sobre.tasks.base import Problem

MOST_FAILED = 0.5
"""Share of the answers that may remain without a verdict."""
GRACE_S = 30.0
"""Seconds past the limit before the timer in C ends the process: where Python still runs, the RunError comes first."""
STDERR = 2
WORDS = "run (the judge is above; after a Timeout: it held the interpreter past judge_s, and the process was ended)"
T = TypeVar("T")


class Asked(NamedTuple):
    """One answer to be judged."""

    problem: Problem
    text: str
    finished: bool


@dataclass(frozen=True)
class Fault:
    """No verdict: what the judge did instead."""

    why: str


def judge(asked: Sequence[Asked], give: Callable[[Asked], T], *, limit_s: float) -> list[T | Fault]:
    """The verdict on each answer, in order; code is tested on all cores, everything else is too short to share out."""
    has_code = any(each.problem.data.get("judge") == "code" for each in asked)
    work = _Work(asked, give)
    n_workers = min(len(asked), os.cpu_count() or 1) if has_code else 1
    _set_timer(limit_s)  # first: a judge can take the interpreter as soon as it is begun, and keep it
    try:
        for _ in range(n_workers):
            threading.Thread(target=work.run, daemon=True).start()  # a daemon: one that hangs must not keep the process
        return work.wait(limit_s)
    finally:
        faulthandler.cancel_dump_traceback_later()


def check(faults: Sequence[str], n: int) -> None:
    """Stop where too few of n answers were judged."""
    if len(faults) > MOST_FAILED * n:
        raise RunError(f"{len(faults)} of {n} answers could not be judged; the first: {faults[0]}")


def _set_timer(limit_s: float) -> None:
    """Set the one timer that a process has for this, which nothing else here uses."""
    faulthandler.dump_traceback_later(limit_s + GRACE_S, exit=True, file=STDERR)


@dataclass
class _Work(Generic[T]):
    asked: Sequence[Asked]
    give: Callable[[Asked], T]
    found: dict[int, T | Fault | BaseException] = field(default_factory=dict)
    begun: dict[int, float] = field(default_factory=dict)
    news: threading.Condition = field(default_factory=threading.Condition)

    def run(self) -> None:
        """Judge until all is begun. Its frame is named WORDS: a stack is all that the timer in C can show."""
        while True:
            with self.news:
                number = len(self.begun)
                if number == len(self.asked):
                    return
                self.begun[number] = time.monotonic()
            try:
                verdict: T | Fault | BaseException = self.give(self.asked[number])
            except JudgeError as error:
                verdict = Fault(str(error))
            except BaseException as error:  # no verdict on one answer, but something that ends the run
                verdict = error
            with self.news:
                self.found[number] = verdict
                self.news.notify()

    def wait(self, limit_s: float) -> list[T | Fault]:
        with self.news:
            while len(self.found) < len(self.asked):
                _set_timer(limit_s)  # anew at every turn, which needs the interpreter
                open_ = [number for number in self.begun if number not in self.found]
                late = [number for number in open_ if time.monotonic() - self.begun[number] > limit_s]
                if late:
                    problem = self.asked[late[0]].problem
                    raise RunError(
                        f"the judge of {problem.task} has not answered for {limit_s:g} s on {problem.key} (judge_s);"
                        f" the answer begins {self.asked[late[0]].text[:80]!r}"
                    )
                self.news.wait(timeout=min(1.0, limit_s))
        verdicts: list[T | Fault] = []
        for number in range(len(self.asked)):
            verdict = self.found[number]
            if isinstance(verdict, BaseException):
                raise verdict
            verdicts.append(verdict)
        return verdicts


_Work.run.__code__ = _Work.run.__code__.replace(co_name=WORDS)
