"""The curriculum: which (task, difficulty) the next problems come from, so that about half of the answers are right.

A group of answers teaches only where some are right and some wrong. Every cell (task, difficulty) keeps a running pass
rate; cells between `low` and `high` are drawn most, those beyond less the farther they are, and a small share of draws
goes to all cells alike. A cell never seen is guessed from the next easier one. Everything here is a pure function of
the recorded pass rates and of (seed, step): the state is small JSON, and the same state draws the same problems.
"""

import random
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from sobre.errors import ConfigError
from sobre.rl.config import CurriculumConfig
from sobre.rl.types import Group
from sobre.tasks.base import Problem
from sobre.tasks.sampling import sample_problem

Sets = Mapping[str, Mapping[int, Sequence[Problem]]]
"""Training problems of files, by the name of the set and their difficulty."""
State = Mapping[str, float]
"""Running pass rate by cell, e.g. {"sorting/2": 0.41}."""

NO_SETS: Sets = {}

START = 0.5
"""Guess for the easiest difficulty of a task before any answer."""
HARDER = 0.6
"""Guess for the pass rate of a difficulty over that of the next easier one."""


class Cell(NamedTuple):
    """One rung of one task's ladder."""

    task: str
    difficulty: int

    @property
    def key(self) -> str:
        return f"{self.task}/{self.difficulty}"


def cells(names: Sequence[str], cfg: CurriculumConfig, sets: Sets = NO_SETS) -> list[Cell]:
    """All rungs of all ladders; a set from a file has those at which it has problems."""
    low, high = cfg.difficulty
    rungs = range(low, high + 1)
    found = [Cell(name, difficulty) for name in names for difficulty in rungs]
    found += [Cell(name, difficulty) for name, levels in sets.items() for difficulty in levels if difficulty in rungs]
    if not found:
        raise ConfigError(f"rl.curriculum.difficulty={cfg.difficulty}: no problem of {', '.join(sets)} lies within")
    return found


def pass_rate(state: State, cell: Cell, cfg: CurriculumConfig) -> float:
    """The running pass rate of a cell, or a guess from below."""
    if cell.key in state:
        return state[cell.key]
    if cell.difficulty <= cfg.difficulty[0]:
        return START
    return HARDER * pass_rate(state, Cell(cell.task, cell.difficulty - 1), cfg)


def updated(state: State, groups: Iterable[Group], cfg: CurriculumConfig) -> dict[str, float]:
    """The state after these groups, whether they were trained on or thrown away."""
    rates: dict[str, list[float]] = {}
    for group in groups:
        rates.setdefault(Cell(group.problem.task, group.problem.difficulty).key, []).append(group.pass_rate)
    new = dict(state)
    for key, seen in rates.items():
        task, _, difficulty = key.rpartition("/")
        past = cfg.memory ** len(seen)
        new[key] = past * pass_rate(state, Cell(task, int(difficulty)), cfg) + (1 - past) * sum(seen) / len(seen)
    return new


def shares(state: State, ladder: Sequence[Cell], cfg: CurriculumConfig) -> list[float]:
    """Share of the next problems for each cell; they sum to 1.

    A task's share grows with its most useful cell, not with their number, so that tasks stay in balance.
    """
    even = 1 / len(ladder)
    if not cfg.enabled:
        return [even] * len(ladder)
    useful = [usefulness(pass_rate(state, cell, cfg), cfg) for cell in ladder]
    best: dict[str, float] = {}
    total: dict[str, float] = {}
    for cell, value in zip(ladder, useful, strict=True):
        best[cell.task] = max(best.get(cell.task, 0.0), value)
        total[cell.task] = total.get(cell.task, 0.0) + value
    aimed = [value / total[cell.task] * best[cell.task] for cell, value in zip(ladder, useful, strict=True)]
    scale = (1 - cfg.explore) / sum(aimed)
    return [scale * value + cfg.explore * even for value in aimed]


def usefulness(rate: float, cfg: CurriculumConfig) -> float:
    """1 between low and high; beyond, it falls as the square of the distance to 0 or 1, which teach nothing."""
    floor = 1e-6  # keeps a ladder of nothing but zeros and ones drawable
    below = rate / cfg.low if cfg.low else 1.0
    above = (1 - rate) / (1 - cfg.high) if cfg.high < 1 else 1.0
    return max(min(1.0, below, above), floor) ** 2


def draw(
    state: State,
    names: Sequence[str],
    langs: Sequence[str],
    cfg: CurriculumConfig,
    n: int,
    key: str,
    sets: Sets = NO_SETS,
) -> list[Problem]:
    """`n` training problems; `key` names the draw (run seed, step, round), and equal keys draw alike.

    A draw takes no problem of a file twice, as long as there are others of its rung. The cells are drawn by one uniform
    number and n equal steps from it, so each gets its share to within one problem.
    """
    rng = random.Random(f"curriculum/{key}")
    ladder = cells(names, cfg, sets)
    ends = list(accumulate(shares(state, ladder, cfg)))
    start = rng.random()
    problems: list[Problem] = []
    stacks: dict[Cell, list[Problem]] = {}
    for i in range(n):
        cell = ladder[min(bisect(ends, (start + i) / n * ends[-1]), len(ladder) - 1)]
        if cell.task not in sets:
            problems.append(sample_problem(cell.task, rng.choice(langs), cell.difficulty, "train", f"rl/{key}", i))
            continue
        if not stacks.get(cell):
            known = sets[cell.task][cell.difficulty]
            stacks[cell] = rng.sample(known, min(n, len(known)))
        problems.append(stacks[cell].pop())
    return problems
