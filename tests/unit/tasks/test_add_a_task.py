"""docs/how-to/add-a-task.md keeps its word: the code on the page is a task, and everything works with it."""

import os
import random
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from sobre.errors import ConfigError
from sobre.tasks import registry
from sobre.tasks.config import TasksConfig
from sobre.tasks.format import reward
from sobre.tasks.registry import GROUP, TASKS, installed
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


def test_the_task_of_an_installed_package_is_asked_by_its_name(tmp_path):
    """The package as the page says, installed as pip leaves it: its module, and beside it its entry points."""
    page = PAGE.read_text(encoding="utf-8")
    (tmp_path / "doubles.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], encoding="utf-8")
    group, line = re.search(r"\[project.entry-points.\"(.*?)\"\]\n(.*?)\n", page).groups()
    (tmp_path / "doubles-1.dist-info").mkdir()
    (tmp_path / "doubles-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: doubles\nVersion: 1\n")
    entry = line.replace('"', "")
    (tmp_path / "doubles-1.dist-info" / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    code = (
        "import random; from sobre.tasks.registry import task; mine = task('doubles');"
        " problem = mine.problem(random.Random(0), 'en', 1);"
        " print(mine.score(problem, problem.answer), task('sorting').name)"
    )
    source = str(Path(registry.__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([source, str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True sorting\n", "")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "mine",
            "nosuchmodule:Mine",
            r"installed task mine \(nosuchmodule:Mine\) cannot be loaded: ModuleNotFound",
        ),
        ("mine", "sobre.tasks.sums:Nothing", "cannot be loaded: AttributeError"),
        ("mine", "sobre.tasks.copying:Rewriting", "cannot be loaded: TypeError"),
        ("mine", "fractions:Fraction", "is no task: it has no problem, thought, score"),
        ("mine", "sobre.tasks.sums:Sums", "calls itself 'sums'; both names must be one"),
        ("sums", "sobre.tasks.sums:Sums", "there is a task of this name already"),
    ],
)
def test_an_installed_task_that_cannot_be_is_named(name, value, message):
    with pytest.raises(ConfigError, match=message):
        installed([EntryPoint(name, value, GROUP)], TASKS)


def test_one_name_for_two_installed_tasks_is_refused():
    entry = EntryPoint("sums", "sobre.tasks.sums:Sums", GROUP)
    assert list(installed([entry], ())) == ["sums"]
    with pytest.raises(ConfigError, match="there is a task of this name already"):
        installed([entry, entry], ())
