"""One layout, and no way to be rewarded around it."""

import random
from dataclasses import replace

import pytest

from sobre.tasks.base import Problem
from sobre.tasks.format import Reward, completion, extract_answer, format_ok, response, reward
from sobre.tasks.language import consistency
from sobre.tasks.registry import TASKS, worked_answer

PROBLEM = Problem("arithmetic", "en", 3, "Compute 6*7", "42", "k", {"lines": ["6*7=42"]})
GOOD = "6*7=42\n</think>\n<answer>42</answer>"

NO_ACCURACY = {
    "answer in the thought only": "<answer>42</answer>\n</think>\n",
    "answer in the thought, another after it": "<answer>42</answer>\n</think>\n<answer>41</answer>",
    "no end of thought": "6*7=42\n<answer>42</answer>",
    "two ends of thought": "6*7=42\n</think>\n</think>\n<answer>42</answer>",
    "two think blocks": "a\n</think>\n<think>\nb\n</think>\n<answer>42</answer>",
    "thought opened twice": "a\n<think>\nb\n</think>\n<answer>42</answer>",
    "thought opened again": "a\n</think>\n<answer>42</answer><think>",
    "answers that differ": "a\n</think>\n<answer>41</answer>\n<answer>42</answer>",
    "every answer": "a\n</think>\n" + "".join(f"<answer>{n}</answer>" for n in range(100)),
    "nested tags": "a\n</think>\n<answer><answer>42</answer></answer>",
    "nested differently": "a\n</think>\n<answer>41<answer>42</answer>",
    "closed twice": "a\n</think>\n<answer>42</answer></answer>",
    "never closed": "a\n</think>\n<answer>42",
    "never opened": "a\n</think>\n42</answer>",
    "bare": "a\n</think>\n42",
    "other case": "a\n</think>\n<ANSWER>42</ANSWER>",
    "empty": "",
    "empty answer": "a\n</think>\n<answer></answer>",
    "other digits": "a\n</think>\n<answer>４２</answer>",
    "huge": "a\n</think>\n<answer>" + "42" * 10_000 + "</answer>",
    "two numbers": "a\n</think>\n<answer>41 42</answer>",
}
NO_FORMAT = {
    "empty thought": "</think>\n<answer>42</answer>",
    "blank thought": " \n\n</think>\n<answer>42</answer>",
    "words before the answer": "a\n</think>\nThe answer: <answer>42</answer>",
    "words after the answer": "a\n</think>\n<answer>42</answer> surely",
    "newline after the answer": "a\n</think>\n<answer>42</answer>\n",
    "no newline": "a</think><answer>42</answer>",
    "answer twice": "a\n</think>\n<answer>42</answer>\n<answer>42</answer>",
    "answer on its own line": "a\n</think>\n<answer>\n42\n</answer>",
    "tags in the thought": "<answer>42</answer>\n</think>\n<answer>42</answer>",
}


def test_the_layout_earns_both_rewards():
    assert completion("6*7=42", "42") == GOOD
    assert response(PROBLEM, "6*7=42") == "<think>\n" + GOOD
    assert reward(PROBLEM, GOOD, True, format_weight=0.1) == Reward(1.0, 1.0, 1.1)


def test_a_wrong_answer_in_the_right_layout_earns_the_format_only():
    assert reward(PROBLEM, completion("6*7=41", "41"), True, format_weight=0.25) == Reward(0.0, 1.0, 0.25)


@pytest.mark.parametrize("text", NO_ACCURACY.values(), ids=NO_ACCURACY)
def test_hacks_earn_no_accuracy(text):
    assert reward(PROBLEM, text, True).accuracy == 0


@pytest.mark.parametrize("text", NO_FORMAT.values(), ids=NO_FORMAT)
def test_a_right_answer_in_another_layout_earns_no_format_reward(text):
    assert not format_ok(text)
    assert reward(PROBLEM, text, True) == Reward(1.0, 0.0, 1.0)


def test_a_completion_that_was_cut_off_earns_nothing():
    assert reward(PROBLEM, GOOD, False) == Reward(0.0, 0.0, 0.0, language=0.0)
    for end in range(len(GOOD)):
        assert reward(PROBLEM, GOOD[:end], True).accuracy == 0
        assert not format_ok(GOOD[:end])


def test_a_comparison_in_the_thought_is_no_tag():
    assert reward(PROBLEM, "41<42>40\n</think>\n<answer>42</answer>", True).total == pytest.approx(1.1)


@pytest.mark.parametrize("name", TASKS)
def test_the_answer_of_a_worked_response_is_the_one_that_the_thought_arrives_at(name):
    for index in range(50):
        rng = random.Random(index)
        problem = TASKS[name].problem(rng, ("en", "fr", "zh")[index % 3], index % 5 + 1)
        text = response(problem, TASKS[name].thought(problem, rng)).removeprefix("<think>\n")
        assert extract_answer(text) == worked_answer(problem)
        assert reward(problem, text, True).total == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("lang", "text", "share"),
    [
        ("en", "first we add 3+4=7 so the total is 7", 1.0),
        ("en", "so the total 是 7", 3 / 4),
        ("en", "puis nous avons the total", 3 / 5),
        ("fr", "on ajoute donc les deux billes", 1.0),
        ("fr", "les billes, and then the total", 3 / 6),
        ("zh", "先加三再减一", 1.0),
        ("zh", "先加 three", 2 / 3),
        ("en", "3+4=7\n7*2=14", 1.0),
        ("fr", "\\frac{1}{2} \\times \\text{x}", 1.0),
        ("zh", "", 1.0),
    ],
)
def test_language_is_the_share_of_words_that_are_of_it(lang, text, share):
    assert consistency(text, lang) == pytest.approx(share)


def test_the_total_is_the_weighted_sum_by_hand():
    mixed = replace(PROBLEM, lang="fr")
    text = "les billes and then the total\n</think>\n<answer>42</answer>"
    earned = reward(mixed, text, True, format_weight=0.1, language_weight=0.5)
    assert (earned.accuracy, earned.format, earned.language) == (1, 1, pytest.approx(3 / 6))
    assert earned.total == pytest.approx(1 + 0.1 + 0.5 * 3 / 6)


def test_a_near_answer_earns_what_its_task_says_and_never_as_much_as_a_right_one():
    near = Problem("reverse", "en", 1, "Reverse: 4 3 2 1", "1 2 3 4", "k", {"wanted": [1, 2, 3, 4]})
    for answer, credit in (("1 2 3 9", 0.75), ("1 2 3", 0.75), ("1 2 3 4 5", 0.8), ("4 3 2 1", 0.0), ("x", 0.0)):
        earned = reward(near, completion("hm", answer), True, format_weight=0, credit_weight=0.4)
        assert earned.total == pytest.approx(0.4 * credit)
    assert reward(near, completion("hm", "1 2 3 4"), True, format_weight=0, credit_weight=0.4).total == 1
    assert reward(PROBLEM, completion("hm", "41"), True, format_weight=0, credit_weight=0.4).total == 0


def test_a_countdown_that_misses_earns_for_the_given_numbers_that_it_uses():
    data = {"numbers": [8, 2], "target": 16}
    problem = Problem("countdown", "en", 1, "Use 8 2 once each to reach 16.", "8*2", "k", data)
    credits = {"2*8": 1.0, "8+2": 0.5, "8+8": 0.25, "16": 0.0, "8+2+2": 1 / 3, "8 2": 0.0, "x": 0.0}
    assert {answer: TASKS["countdown"].credit(problem, answer) for answer in credits} == credits
