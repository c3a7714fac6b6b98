"""What a verifiable task is: it draws problems, writes a correct worked thought, and scores an answer exactly.

A task is a stateless object: everything random comes from the `rng` that is passed in, so that a problem is a pure
function of its seed. `key` names the problem without its language and wording (task and numbers): the splits are
made on it (`sampling.split_of`), so that no problem of the test set is ever trained on in another language.
Difficulty is a dial from 1 to 5; 3 is what the test set uses, and each task's header says what its levels mean.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

DIFFICULTIES = range(1, 6)
YES = {"en": "yes", "fr": "oui", "zh": "对"}
NO = {"en": "no", "fr": "non", "zh": "不"}


@dataclass(frozen=True)
class Problem:
    """One question with one right answer, or several that `Task.score` can tell."""

    task: str
    lang: str
    difficulty: int
    prompt: str
    """What the user says, plain text."""
    answer: str
    """A reference answer; for countdown one of many."""
    key: str
    """Canonical identity: task and numbers, the same in every language."""
    data: Mapping[str, Any]
    """The numbers that `thought` and `score` need."""


class Task(Protocol):
    """The seam that sampling, evaluation and reinforcement learning know."""

    name: str

    def problem(self, rng: random.Random, lang: str, difficulty: int) -> Problem:
        """Draw a problem of this difficulty, worded in this language."""

    def thought(self, problem: Problem, rng: random.Random) -> str:
        """A correct worked solution: the text inside the think tags, one elementary operation at a time."""

    def score(self, problem: Problem, answer: str) -> bool:
        """Whether the text of an answer is right, exactly."""


@runtime_checkable
class Creditor(Protocol):
    """A task that can also say how near a wrong answer is."""

    def credit(self, problem: Problem, answer: str) -> float:
        """From 0 to 1; 1 for a right answer."""


@runtime_checkable
class Finder(Protocol):
    """A task with many right answers, whose thought finds one that need not be the reference."""

    def found(self, problem: Problem) -> str:
        """The answer at which the thought arrives."""


def places_right(wanted: Sequence[int], found: Sequence[int] | None) -> float:
    """Places that hold the wanted number, over the places of the longer list."""
    if found is None:
        return 0.0
    same = sum(a == b for a, b in zip(wanted, found, strict=False))
    return same / max(len(wanted), len(found))
