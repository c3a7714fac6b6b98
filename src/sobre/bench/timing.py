"""Contestants take turns, so that a machine whose speed drifts treats all of them alike.

A round runs every contestant once; the next round begins with another one. Ratios are taken within a round, and their
median is the result: absolute figures of a small or shared machine move by tens of percent within minutes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

Work = Callable[[], object]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Timing:
    """One turn of one contestant."""

    wall_s: float
    cpu_s: float
    """Of the process: close to wall_s at one thread on an idle machine, less on a busy one."""


Round = dict[str, Timing]


def time_once(work: Work) -> Timing:
    """Run `work` and take its time."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def interleave(works: Mapping[str, Work], *, rounds: int, warmup: int, say: Say) -> list[Round]:
    """Time every contestant once a round."""
    names = list(works)
    for _ in range(warmup):
        for name in names:
            works[name]()
    found: list[Round] = []
    for index in range(rounds):
        first = index % len(names)
        found.append({name: time_once(works[name]) for name in names[first:] + names[:first]})
        say(f"round {index + 1} of {rounds}: " + ", ".join(f"{n} {found[-1][n].wall_s:.2f} s" for n in names))
    return found


def medians(rounds: Sequence[Round], units: Mapping[str, float], unit: str) -> dict[str, Any]:
    """Per contestant: median seconds, and `unit` per second where `units` says how many of it one turn does."""
    return {
        name: {
            "wall_s": (wall_s := median(round_[name].wall_s for round_ in rounds)),
            "cpu_s": median(round_[name].cpu_s for round_ in rounds),
            "per_s": units[name] / wall_s,
            "unit": unit,
        }
        for name in rounds[0]
    }


def ratio(
    rounds: Sequence[Round], of: str, over: str, *, units: Mapping[str, float], target: float | None = None
) -> dict[str, Any]:
    """Speed of `of` over that of `over`, by wall clock, in every round; the CPU clock's median stands beside it."""
    work = units[of] / units[over]
    by_round = [round_[over].wall_s / round_[of].wall_s * work for round_ in rounds]
    by_cpu = [round_[over].cpu_s / round_[of].cpu_s * work for round_ in rounds]
    return {
        "of": of,
        "over": over,
        "median": median(by_round),
        "cpu_median": median(by_cpu),
        "rounds": by_round,
        "target": target,
    }


def as_json(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """The rounds as data."""
    return [{name: asdict(timing) for name, timing in round_.items()} for round_ in rounds]
