"""Checks are counted where a thought compares a result or doubts, and nowhere else."""

import random

import pytest

from sobre.tasks.checking import n_checks
from sobre.tasks.registry import task


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("3*5=15\n15+34=49 yes\n</think>\n<answer>5</answer>", 1),
        ("20+1=21:60 no\n13:60 oui\n9:60 不", 3),
        ("A+ B+ no B\nA- B- yes", 2),
        ("Wait, that is wrong. Let me check: 6*7=42", 3),
        ("Attends, je vérifie", 2),
        ("等等，检查一下", 2),
        ("there are no apples, and yesterday 3 notes", 0),
        ("6*7=42\n</think>\nwait, 42 yes", 0),
        ("", 0),
    ],
    ids=["verdict", "languages", "knights", "words", "French", "Chinese", "not alone", "after the thought", "empty"],
)
def test_each_check_is_counted_once(text: str, n: int) -> None:
    assert n_checks(text) == n


@pytest.mark.parametrize("lang", ["en", "fr", "zh"])
def test_worked_thoughts_check_alike_in_every_language(lang: str) -> None:
    for name, at_least in (("equation", 1), ("countdown", 1), ("arithmetic", 0)):
        found = task(name)
        problem = found.problem(random.Random(3), lang, 3)
        english = found.problem(random.Random(3), "en", 3)
        checks = n_checks(found.thought(problem, random.Random(0)))
        assert checks == n_checks(found.thought(english, random.Random(0))) >= at_least
