"""Rewards of a step: by verifiers where there is a right answer, by a judge with a rubric where there is none.

Rewards of general questions are the judge's grade from 0 to 1 times a weight (R1, arXiv 2501.12948, 2.3.4); a general
answer that was cut, or is all thought, earns nothing, and one without a grade has no verdict (`tasks/judging.py`).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from sobre.rl.config import RLConfig
from sobre.tasks.format import Reward, thought_ok
from sobre.tasks.judging import Asked, Fault, judge
from sobre.tasks.rubric import grading_prompt, rubric_of

Give = Callable[[Asked], Reward]


class Grader(Protocol):
    """Whoever grades answers by the rubrics of their questions."""

    @property
    def flops(self) -> float:
        """Model FLOPs that grading has taken here so far."""

    def grade(self, prompts: Sequence[str]) -> Sequence[float | None]:
        """The grade from 0 to 1 that each `grading_prompt` gets; None where there was none."""


def rewards(
    asked: Sequence[Asked],
    give: Give,
    grader: Grader | None,
    cfg: RLConfig,
    *,
    format_weight: float,
    limit_s: float,
) -> list[Reward]:
    """The reward of each answer, in order."""
    general = [place for place, each in enumerate(asked) if rubric_of(each.problem)]
    if not general:
        return verified(asked, give, limit_s=limit_s)
    assert grader is not None, "general questions need a judge"
    graded = _graded([asked[place] for place in general], grader, cfg.general.weight, format_weight)
    found = dict(zip(general, graded, strict=True))
    others = [place for place in range(len(asked)) if place not in found]
    found |= zip(others, verified([asked[place] for place in others], give, limit_s=limit_s), strict=True)
    return [found[place] for place in range(len(asked))]


def verified(asked: Sequence[Asked], give: Give, *, limit_s: float) -> list[Reward]:
    """The rewards by verifiers; one without a verdict says why (`Reward.fault`)."""
    return [
        Reward(0.0, 0.0, 0.0, fault=found.why) if isinstance(found, Fault) else found
        for found in judge(asked, give, limit_s=limit_s)
    ]


def _graded(asked: Sequence[Asked], grader: Grader, weight: float, format_weight: float) -> list[Reward]:
    prompts = [grading_prompt(each.problem, each.text) if each.finished else None for each in asked]
    grades = iter(grader.grade([prompt for prompt in prompts if prompt is not None]))
    return [
        Reward(0.0, 0.0, 0.0, language=0.0) if prompt is None else _reward(each, next(grades), weight, format_weight)
        for each, prompt in zip(asked, prompts, strict=True)
    ]


def _reward(each: Asked, grade: float | None, weight: float, format_weight: float) -> Reward:
    if grade is None:
        return Reward(0.0, 0.0, 0.0, fault=f"the judge gave no grade to an answer to {each.problem.key}")
    formed = float(thought_ok(each.text))
    return Reward(grade, formed, weight * grade + format_weight * formed)
