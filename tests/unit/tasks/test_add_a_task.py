"""docs/how-to/add-a-task.md keeps its word: the code on the page is a task, and everything works with it."""

import random
import re
from pathlib import Path

import pytest

from sobre.tasks.config import TasksConfig
from sobre.tasks.format import reward
from sobre.tasks.registry import TASKS
from sobre.tasks.sampling import chat, mixed_problem, test_set
from sobre.tasks.text import TextConfig, document

from .test_tasks import perturbed

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "add-a-task.md"


@pytest.fixture
def doubles(monkeypatch):
    """The task of the page, registered for one test."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    module: dict = {}
    exec(compile(code, str(PAGE), "exec"), module)
    monkeypatch.setitem(TASKS, "doubles", module["Doubles"]())
    return TASKS["doubles"]


def test_the_task_on_the_page_is_a_whole_task(doubles):
    cfg = TasksConfig(names=("doubles", "sorting"))
    held_out = test_set(100, cfg)
    keys = {problem.key for problem in held_out}
    for index in range(300):
        problem = mixed_problem(cfg, "sft", index)
        assert problem.key not in keys
        assert reward(problem, chat(cfg, "sft", index)[1]["content"].removeprefix("<think>\n"), True).accuracy == 1
    for problem in (p for p in held_out if p.task == "doubles"):
        assert doubles.score(problem, problem.answer)
        assert not any(doubles.score(problem, wrong) for wrong in [f"{problem.answer} 1", *perturbed(problem)])
    assert document(0, 0, TextConfig(names=("doubles",), facts_share=0, sentences_share=0))


def test_the_key_of_the_task_on_the_page_knows_no_language(doubles):
    drawn = [doubles.problem(random.Random(1), lang, 2) for lang in ("en", "fr", "zh")]
    assert len({problem.key for problem in drawn}) == 1
