"""Splits that cannot share a problem, one fixed test set, streams that depend on nothing but seed and index."""

import hashlib
import itertools
import json
from collections import Counter
from dataclasses import asdict

import pytest

from sobre.errors import ConfigError
from sobre.tasks.config import LANGS, TasksConfig
from sobre.tasks.format import THINK_OPEN, reward
from sobre.tasks.registry import TASKS, task
from sobre.tasks.sampling import chat, mixed_problem, sample_problem, split_of, stream, test_set, val_set

DIGEST = "51e022956b8b41116d0c30781e2c80ff2ccac1fa1f31630a4f7a9162c9e4fa63"


@pytest.fixture(scope="module")
def tests():
    return test_set()


def test_the_test_set_never_changes(tests):
    """What is asked and what counts as right; `data`, what a thought is written from, is left out."""
    asked = [{k: v for k, v in asdict(problem).items() if k != "data"} for problem in tests]
    canonical = json.dumps(asked, ensure_ascii=False, sort_keys=True)
    assert hashlib.sha256(canonical.encode()).hexdigest() == DIGEST


def test_the_test_set_has_equal_parts_of_every_task_and_language(tests):
    assert len({problem.key for problem in tests}) == len(tests) == 1000
    by_task, by_lang = Counter(p.task for p in tests), Counter(p.lang for p in tests)
    by_cell = Counter((p.task, p.lang) for p in tests)
    for counts, n_cells in ((by_task, 6), (by_lang, 3), (by_cell, 18)):
        assert len(counts) == n_cells
        assert max(counts.values()) - min(counts.values()) <= 1
    assert {p.difficulty for p in tests} == {3}


def test_every_reference_answer_of_the_test_set_is_right(tests):
    assert all(task(problem.task).score(problem, problem.answer) for problem in tests)


@pytest.mark.parametrize("name", sorted(TASKS))
@pytest.mark.slow
def test_every_task_has_a_test_set_and_a_validation_set_of_its_own(name):
    cfg = TasksConfig(names=(name,))
    held_out, validation = test_set(180, cfg), val_set(100, cfg)
    assert len({p.key for p in held_out} | {p.key for p in validation}) == 280


def test_a_smaller_test_set_begins_a_larger_one(tests):
    assert test_set(100) == tests[:100]


def test_another_test_seed_is_another_test_set(tests):
    other = test_set(100, TasksConfig(test_seed=2))
    assert len({p.key for p in other} & {p.key for p in tests}) < 20


@pytest.mark.slow
def test_no_problem_is_in_two_splits(tests):
    keys = {split: set() for split in ("train", "val", "test")}
    for split, name, lang in itertools.product(keys, TASKS, LANGS):
        keys[split] |= {sample_problem(name, lang, (1, 5), split, seed=9, index=i).key for i in range(60)}
    keys["test"] |= {problem.key for problem in tests}
    keys["val"] |= {problem.key for problem in val_set(300)}
    keys["train"] |= {mixed_problem(TasksConfig(), "sft", i).key for i in range(3000)}
    assert len(keys["train"]) > 3000
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["val"]
    assert not keys["val"] & keys["test"]
    assert all(split_of(key) == split for split, found in keys.items() for key in found)


def test_no_prompt_of_the_test_set_is_asked_in_training(tests):
    asked = {mixed_problem(TasksConfig(difficulty=(3, 3)), "sft", i).prompt for i in range(3000)}
    assert not asked & {problem.prompt for problem in tests}


def test_a_tenth_each_of_all_keys_is_test_and_validation():
    counts = Counter(split_of(f"key {i}") for i in range(20_000))
    assert counts["test"] == pytest.approx(2000, rel=0.1)
    assert counts["val"] == pytest.approx(2000, rel=0.1)


def test_a_problem_depends_on_its_address_alone():
    first = [sample_problem("word", "fr", (1, 3), "train", 7, i) for i in range(20)]
    assert [sample_problem("word", "fr", (1, 3), "train", 7, i) for i in reversed(range(20))] == first[::-1]
    assert [sample_problem("word", "fr", (1, 3), "train", 8, i) for i in range(20)] != first
    assert {p.difficulty for p in first} == {1, 2, 3}
    assert {sample_problem("word", "fr", 2, "train", 7, i).difficulty for i in range(9)} == {2}


def test_worked_examples_are_right_and_can_be_started_anywhere():
    cfg = TasksConfig()
    examples = list(itertools.islice(stream(cfg, "sft"), 360))
    assert list(itertools.islice(stream(cfg, "sft", start=300), 60)) == examples[300:]
    assert chat(cfg, "sft", 17) == examples[17]
    for index, (user, assistant) in enumerate(examples):
        problem = mixed_problem(cfg, "sft", index)
        assert user == {"role": "user", "content": problem.prompt}
        assert assistant["role"] == "assistant"
        text = assistant["content"].removeprefix(f"{THINK_OPEN}\n")
        assert reward(problem, text, True).total == pytest.approx(1.1)
    cells = Counter((p.task, p.lang) for p in (mixed_problem(cfg, "sft", i) for i in range(360)))
    assert set(cells.values()) == {20}


def test_a_curriculum_chooses_the_difficulty_by_task():
    cfg = TasksConfig(names=("sorting", "equation"), difficulty=(1, 1))
    problems = [mixed_problem(cfg, 0, i, {"sorting": 4, "equation": (2, 3)}) for i in range(60)]
    assert {p.difficulty for p in problems if p.task == "sorting"} == {4}
    assert {p.difficulty for p in problems if p.task == "equation"} == {2, 3}
    assert {mixed_problem(cfg, 0, i).difficulty for i in range(20)} == {1}


def test_an_unknown_task_shows_the_near_ones():
    with pytest.raises(ConfigError, match="no task 'sortin'; near it: sorting"):
        sample_problem("sortin", "en", 3, "train", 0, 0)


@pytest.mark.parametrize("difficulty", [0, 6, (3, 2), (0, 3), (4, 6)])
def test_a_difficulty_outside_one_to_five_is_refused(difficulty):
    with pytest.raises(ConfigError, match=r"within 1\.\.5"):
        sample_problem("sorting", "en", difficulty, "train", 0, 0)


def test_a_test_set_larger_than_the_task_is_refused():
    cfg = TasksConfig(names=("arithmetic",), langs=("en",), test_difficulty=1)
    with pytest.raises(ConfigError, match="fewer different problems"):
        test_set(2000, cfg)


@pytest.mark.parametrize(
    "wrong",
    [{"names": ()}, {"names": ("word", "word")}, {"langs": ()}, {"difficulty": (0, 3)}, {"difficulty": (3, 1)}]
    + [{"test_difficulty": 6}, {"test_size": 0}, {"format_weight": 1.0}, {"format_weight": -0.1}],
)
def test_a_mixture_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError):
        TasksConfig(**wrong)
