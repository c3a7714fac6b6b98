"""Sets of problems from files, split so that nothing examined is trained on.

The split of a problem is a hash of what it asks (`tasks.sampling.split_of`), whatever its id: the same question in two
records or two files falls into the same split. A question that stands twice is kept once. Training problems that share
13 words with a held-out one, or hold a short one whole (`data/overlap.py`), are left out. What is left out
is counted.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sobre.data.events import Events
from sobre.data.overlap import TestOverlap
from sobre.errors import ConfigError, DataError
from sobre.tasks.base import Problem
from sobre.tasks.config import TasksConfig, named_files
from sobre.tasks.files import read_problems
from sobre.tasks.hub import located
from sobre.tasks.judges import check_judges
from sobre.tasks.sampling import split_of, test_set


@dataclass(frozen=True)
class ProblemSet:
    """One file's problems, by what they are for."""

    name: str
    path: str
    sha256: str
    train: tuple[Problem, ...]
    val: tuple[Problem, ...]
    test: tuple[Problem, ...]
    repeated: int = 0
    """Records whose question stands in an earlier one."""
    too_long: int = 0
    """Questions over `tasks.max_question`."""
    overlapping: int = 0
    """Training problems left out because they overlap with a held-out one."""

    def to_dict(self) -> dict[str, Any]:
        """For problems.json."""
        counts = {split: len(getattr(self, split)) for split in ("train", "val", "test")}
        left_out = {"repeated": self.repeated, "too_long": self.too_long, "overlapping": self.overlapping}
        return {"path": self.path, "sha256": self.sha256, **counts, "left_out": left_out}

    def levels(self) -> dict[int, tuple[Problem, ...]]:
        """The training problems by difficulty."""
        found: dict[int, list[Problem]] = {}
        for problem in self.train:
            found.setdefault(problem.difficulty, []).append(problem)
        return {level: tuple(found[level]) for level in sorted(found)}


def content(problem: Problem) -> str:
    """What a problem asks, without case, spaces and punctuation, but with the signs of arithmetic."""
    return " ".join(re.findall(r"\w+|[-+*/=<>^]", problem.prompt.casefold()))


def read_sets(cfg: TasksConfig, events: Events) -> tuple[ProblemSet, ...]:
    """The sets of the recipe, and none when it names no files. Raises for what could not be judged here."""
    tests = [_read(*named, cfg, events) for named in named_files("tasks.test_files", cfg.test_files).items()]
    seen = {content(problem) for each in tests for problem in each.test}
    learned = [
        _split(_read(*named, cfg, events), seen, keeps_test=not tests)
        for named in named_files("tasks.files", cfg.files).items()
    ]
    sets = [*learned, *tests]
    overlaps = [  # one for each split: a run that a val and a test problem share is still a test problem's
        TestOverlap([problem.prompt for each in sets for problem in getattr(each, split)]) for split in ("val", "test")
    ]
    for at, each in enumerate(learned):
        kept = tuple(problem for problem in each.train if not _found(problem, overlaps))
        if not kept:
            raise DataError(f"{each.path} leaves no problem to train on: {each.to_dict()}")
        sets[at] = replace(each, train=kept, overlapping=len(each.train) - len(kept))
    if sets and not any(each.test for each in sets):
        paths = ", ".join(each.path for each in sets)
        raise DataError(f"{paths}: too few problems to keep a tenth for the test; name others in tasks.test_files")
    check_judges(problem for each in sets for problem in (*each.train, *each.test))
    return tuple(sets)


def held_out(n: int, cfg: TasksConfig, sets: Sequence[ProblemSet]) -> list[Problem]:
    """At most n problems to examine on: equal parts of every generated task and file, as far as a file has them."""
    tested = [each for each in sets if each.test]
    if not tested:
        return test_set(n, cfg)
    share = max(1, n // (len(cfg.names) + len(tested)))
    generated = test_set(share * len(cfg.names), cfg) if cfg.names else []
    found = [*generated, *(problem for each in tested for problem in each.test[:share])]
    return found[:n]


def training_levels(sets: Iterable[ProblemSet]) -> dict[str, Mapping[int, Sequence[Problem]]]:
    """What may be trained on, by set and difficulty."""
    return {each.name: each.levels() for each in sets if each.train}


def _read(name: str, path: str, cfg: TasksConfig, events: Events) -> ProblemSet:
    """The whole file as a test, in an order of its own, by the hash of what is asked."""
    file = located(path)
    if not file.is_file():
        raise ConfigError(f"tasks: {name}={path} is no file")
    fits = "a question with an answer, choices or tests (docs/how-to/add-a-task.md)"
    problems = read_problems(file, name, lambda fault: events.reject("problem", "tasks", fault, fits))
    fitting = [problem for problem in problems if not 0 < cfg.max_question < len(problem.prompt)]
    fitting.sort(key=lambda problem: hashlib.blake2b(content(problem).encode(), digest_size=8).digest())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return ProblemSet(name, path, digest, (), (), tuple(fitting), too_long=len(problems) - len(fitting))


def _split(whole: ProblemSet, seen: set[str], *, keeps_test: bool) -> ProblemSet:
    """Deal the problems out; `seen` holds what other sets ask, and learns what this one does."""
    parts: dict[str, list[Problem]] = {"train": [], "val": [], "test": []}
    repeated = 0
    for problem in whole.test:
        asked = content(problem)
        if asked in seen:
            repeated += 1
            continue
        seen.add(asked)
        split = split_of(asked)
        parts["train" if split == "test" and not keeps_test else split].append(problem)
    train, val, test = (tuple(parts[split]) for split in ("train", "val", "test"))
    return replace(whole, train=train, val=val, test=test, repeated=repeated)


def _found(problem: Problem, overlaps: Sequence[TestOverlap]) -> bool:
    return any(overlap.find(problem.prompt) is not None for overlap in overlaps)
