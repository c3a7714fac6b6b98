"""Questions without a right answer: a judge's grades become rewards, and no grade becomes no verdict."""

from types import SimpleNamespace
from typing import cast

import pytest

from sobre.app import grader as app
from sobre.app.session import Session
from sobre.errors import ConfigError, RunError
from sobre.eval.answer import Reply
from sobre.rl.batch import to_samples
from sobre.rl.config import GeneralConfig, GRPOConfig, RLConfig
from sobre.rl.rollout import collect
from sobre.rl.source import general_questions
from sobre.runtime.processes import Processes
from sobre.tasks.base import Problem
from sobre.tasks.config import TasksConfig
from sobre.tasks.sampling import sample_problem

GENERAL = Problem("general", "en", 1, "Say hello.", "", "general:1", {"rubric": "Is kind."})
SORTING = sample_problem("sorting", "en", 1, "train", "g", 0)
JUDGED = GeneralConfig(files=("x",), judge="base", weight=2.0)
CFG = RLConfig(n_prompts=2, group_size=4, max_tokens=5, algorithm=GRPOConfig(refill_rounds=0), general=JUDGED)


class Scripted:
    """Grades in order; remembers what it was asked."""

    def __init__(self, *grades: float | None) -> None:
        self.grades, self.asked, self.flops = list(grades), list[str](), 0.0

    def grade(self, prompts):
        self.asked += prompts
        self.flops += 100.0
        return [self.grades.pop(0) for _ in prompts]


def roll(make: SimpleNamespace, grader: Scripted, problems=(GENERAL, SORTING), cut: int = -1):
    """Answers are "?", which the judge may like; number `cut` does not end."""
    seen: list[int] = []

    def answer(request):
        seen.append(0)
        return [9, make.eos] if len(seen) - 1 != cut else [9, 9], len(seen) - 1 != cut

    tasks = TasksConfig(format_weight=0.1)
    return collect(
        make.engine(answer), make.tokenizer, lambda round_, n: list(problems)[:n], CFG, tasks, seed=0, grader=grader
    )


def test_grades_are_rewards_of_general_questions_and_verifiers_judge_the_rest(make: SimpleNamespace) -> None:
    grader = Scripted(1.0, 0.5, 0.0, 0.5)
    rollouts = roll(make, grader)
    (general,) = rollouts.groups
    assert [answer.reward.total for answer in general.rollouts] == [2.0, 1.0, 0.0, 1.0]
    assert all("Is kind." in prompt and "<answer>\n?\n</answer>" in prompt for prompt in grader.asked)
    assert [sample.advantage for sample in to_samples([general], CFG)] == [1.0, 0.0, -1.0, 0.0]
    metrics = rollouts.metrics()
    assert metrics["grade"] == 0.5
    assert metrics["pass_rate"] == 0.0  # of the sorting problem alone
    assert all(group.problem.task == "sorting" for group in rollouts.verified)
    assert metrics["rollout_flops"] - metrics["rollout_tokens"] == 100.0


def test_an_answer_without_a_grade_has_no_verdict_and_one_that_was_cut_earns_nothing_unasked(make) -> None:
    grader = Scripted(0.8, None, 0.4)
    rollouts = roll(make, grader, problems=(GENERAL,), cut=0)
    rewards = [answer.reward for answer in rollouts.groups[0].rollouts]
    assert [reward.total for reward in rewards if not reward.fault] == [0.0, 1.6, 0.8]
    assert "no grade to an answer to general:1" in rewards[2].fault
    assert rollouts.metrics()["unjudged"] == 1
    assert len(grader.asked) == 3


def test_a_judge_that_grades_nothing_ends_the_run(make: SimpleNamespace) -> None:
    with pytest.raises(RunError, match="could not be judged; the first: the judge gave no grade"):
        roll(make, Scripted(None, None, None, 0.1), problems=(GENERAL,))


def test_a_judge_that_fails_on_its_questions_ends_the_run_though_most_answers_have_a_verifier(make) -> None:
    with pytest.raises(RunError, match="3 of 4 answers could not be judged; the first: the judge gave no grade"):
        roll(make, Scripted(None, None, None, 0.1), problems=(GENERAL, SORTING))


def test_general_questions_are_drawn_alike_again_and_none_twice_while_there_are_others() -> None:
    known = [Problem("general", "en", 1, f"{i}?", "", f"general:{i}", {"rubric": "x"}) for i in range(3)]
    found = general_questions(known, 7, "key")
    assert found == general_questions(known, 7, "key")
    assert [len({problem.key for problem in found[i : i + 3]}) for i in (0, 3)] == [3, 3]
    assert general_questions([], 7, "key") == []


def test_the_judge_is_asked_greedily_and_its_grades_are_read(monkeypatch) -> None:
    class Wise:
        def answer(self, questions, k, how):
            assert (k, how.temperature) == (1, 0.0)
            return [[Reply(f"Well. <grade>{len(question)}</grade>", True, 3)] for question in questions]

    def open_wise(session, who, model_name, key_env):
        opened.append(who)
        return Wise(), None

    opened: list[str] = []
    monkeypatch.setattr(app, "open_answerer", open_wise)
    grader = app.ModelGrader(cast(Session, SimpleNamespace(processes=Processes())), CFG.general)
    assert grader.grade(["12345", "1", "123456789012"]) == [0.5, 0.1, None]
    assert grader.grade(["1234"]) == [0.4]
    assert (opened, grader.flops) == (["base"], 0.0)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"files": ["a.jsonl"]}, "need both"),
        ({"judge": "base"}, "need both"),
        ({"files": ["a"], "judge": "http://h/v1"}, "needs general.model_name"),
        ({"share": 0.0}, "general.share=0.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GeneralConfig(**{name: tuple(value) if isinstance(value, list) else value for name, value in setting.items()})
