"""Every answer of a teacher has one fate, and what is kept can be learned from as it stands."""

import pytest

from sobre.distill.choose import FATES, Choice, readable
from sobre.errors import ConfigError, RunError
from sobre.eval.answer import Reply
from sobre.tasks.base import Problem
from sobre.tasks.format import completion
from sobre.tasks.registry import TASKS
from sobre.tasks.sampling import sample_problem
from sobre.train.config import AnswersConfig

PROBLEM = sample_problem("sorting", "en", 1, "train", "distill", 0)
RIGHT = PROBLEM.answer


def reply(text: str, *, finished: bool = True, n_tokens: int = 10) -> Reply:
    return Reply(text, finished, n_tokens)


def fates(*replies: Reply, problem: Problem = PROBLEM, **settings: int) -> dict[str, int]:
    choice = Choice(AnswersConfig(**{"keep": 9, **settings}))
    choice.take([problem], [replies])
    return {fate: n for fate, n in choice.figures().items() if n and fate in FATES}


@pytest.mark.parametrize(
    ("said", "fate"),
    [
        (reply(completion("by hand", RIGHT)), "kept"),
        (reply(completion("by hand", RIGHT), finished=False), "cut"),
        (reply(completion("by hand", "0 0 0")), "wrong"),
        (reply(f"by hand\n</think>\n<answer>{RIGHT}</answer> so there"), "layout"),
        (reply(completion("la somme est dans le the", RIGHT)), "mixed"),
        (reply(completion("again\nagain\nagain\nagain", RIGHT)), "unreadable"),
        (reply(completion("by h\N{REPLACEMENT CHARACTER}nd", RIGHT)), "unreadable"),
        (reply(completion("by hand", RIGHT), n_tokens=51), "long"),
    ],
)
def test_each_fate(said: Reply, fate: str) -> None:
    assert fates(said, longest=50) == {fate: 1}


def test_what_the_verifier_fails_on_is_neither_right_nor_wrong(monkeypatch) -> None:
    class Moody:
        def score(self, problem, answer):
            return {RIGHT: True, "0": False}[answer]

    monkeypatch.setitem(TASKS, "sorting", Moody())
    said = [reply(completion("by hand", answer)) for answer in (RIGHT, "0", "boom")]
    assert fates(*said) == {"kept": 1, "wrong": 1, "unjudged": 1}
    with pytest.raises(RunError, match="2 of 3 answers could not be judged"):
        fates(said[0], said[2], said[2])


def test_the_same_words_are_kept_once_and_no_more_than_asked_for() -> None:
    one, other = completion("one way", RIGHT), completion("another way", RIGHT)
    assert fates(reply(one), reply(one), reply(other)) == {"kept": 2, "duplicate": 1}
    assert fates(reply(one), reply(other), keep=1) == {"kept": 1, "surplus": 1}


def test_the_shortest_right_answer_is_kept_and_makes_a_chat_with_its_thought() -> None:
    choice = Choice(AnswersConfig(keep=1))
    choice.take(
        [PROBLEM], [[reply(completion("a long way", RIGHT), n_tokens=9), reply(completion("short", RIGHT), n_tokens=5)]]
    )
    (chat,) = choice.chats
    assert chat.messages == [
        {"role": "user", "content": PROBLEM.prompt},
        {"role": "assistant", "content": f"<think>\nshort\n</think>\n<answer>{RIGHT}</answer>"},
    ]
    assert choice.figures()["solved"] == 1


def test_a_judged_answer_may_be_in_any_layout_with_a_thought_or_plain() -> None:
    problem = Problem("mine", "en", 3, "6 times 7?", "42", "mine:1", {"judge": "math"})
    boxed = reply("six sevens\n</think>\nIt is \\boxed{42}.")
    plain = reply("\\boxed{42}")
    assert fates(boxed, plain, problem=problem) == {"kept": 2}
    choice = Choice(AnswersConfig())
    choice.take([problem], [[plain]])
    assert choice.chats[0].messages[1]["content"] == "\\boxed{42}"


def test_a_line_may_come_again_but_not_often() -> None:
    assert readable("a\nb\na\n\n\n\n\nb\na", 4)
    assert not readable("a\nb\n a\na\na ", 4)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"k": 0}, "answers.k=0"),
        ({"share": 1.0}, "the rest is for learning"),
        ({"temperature": 0.0}, "all alike"),
        ({"teacher": "http://127.0.0.1:1/v1"}, "needs answers.model_name"),
        ({"repeats": 1}, "every line comes once"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        AnswersConfig(**setting)
