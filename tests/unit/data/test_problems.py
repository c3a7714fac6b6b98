"""Sets of problems from files: nothing examined is trained on, and what is left out is counted."""

import json
from pathlib import Path

import pytest

from sobre.data.events import Events
from sobre.data.problems import content, held_out, read_sets, training_levels
from sobre.errors import ConfigError, DataError, SandboxError
from sobre.tasks import judges
from sobre.tasks.config import TasksConfig, named_files
from sobre.tasks.sampling import split_of, test_set

NAMES = ("Ana", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jo")


def sums(start: int, n: int) -> list[dict]:
    return [
        {"id": f"s{i}", "prompt": f"{NAMES[i % 10]} has {i} nuts and finds {i * 7 % 31}.", "answer": i + i * 7 % 31}
        for i in range(start, start + n)
    ]


def written(path: Path, records: list) -> str:
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records), encoding="utf-8")
    return str(path)


def read(cfg: TasksConfig, on_bad="refuse"):
    events = Events(on_bad)
    return read_sets(cfg, events), events


def asked(sets, split: str) -> set[str]:
    return {content(problem) for each in sets for problem in getattr(each, split)}


def test_the_split_is_by_what_is_asked_and_not_by_its_id(tmp_path):
    records = sums(0, 200)
    again = [{**record, "id": f"other {record['id']}", "prompt": record["prompt"].upper()} for record in records[:50]]
    sets, _ = read(TasksConfig(names=(), files=(written(tmp_path / "a.jsonl", records + again),)))
    (only,) = sets
    assert only.repeated == 50
    assert len(only.train) + len(only.val) + len(only.test) + only.overlapping == 200
    assert not asked(sets, "train") & asked(sets, "test")
    assert not asked(sets, "train") & asked(sets, "val")
    assert all(split_of(content(problem)) == "test" for problem in only.test)
    assert 8 <= len(only.test) <= 35
    other, _ = read(TasksConfig(names=(), files=(written(tmp_path / "b.jsonl", again[::-1] + records),)))
    assert asked(other, "test") == asked(sets, "test")


def test_what_overlaps_with_a_held_out_problem_is_not_trained_on(tmp_path):
    long = "a farmer with nine red hens sells every egg that they lay on a cold monday for {} coins"
    records = [{"prompt": long.format(i), "answer": 9 * i} for i in range(1)]
    test = written(tmp_path / "test.jsonl", records)
    leaks = [{"prompt": f"Once upon a time {long.format(0)} or {i}. How many?", "answer": i} for i in range(8)]
    train = written(tmp_path / "train.jsonl", [*sums(0, 40), *leaks, records[0]])
    sets, _ = read(TasksConfig(names=(), files=(train,), test_files=(test,)))
    learned, tested = sets
    assert learned.overlapping == sum(split_of(content(one(tmp_path, leak))) != "val" for leak in leaks) >= 4
    assert learned.repeated == 1
    assert len(tested.test) == 1
    assert not any("farmer" in problem.prompt for problem in learned.train)


def test_with_sets_of_their_own_for_the_test_only_validation_is_held_back(tmp_path):
    train, test = written(tmp_path / "train.jsonl", sums(0, 100)), written(tmp_path / "test.jsonl", sums(500, 20))
    (learned, tested), _ = read(TasksConfig(names=(), files=(train,), test_files=(test,)))
    assert (learned.test, tested.train, tested.val) == ((), (), ())
    assert len(tested.test) == 20
    assert len(learned.train) + len(learned.val) + learned.overlapping == 100
    assert training_levels((learned, tested)).keys() == {"train"}
    assert sum(map(len, training_levels((learned,))["train"].values())) == len(learned.train)


def test_the_test_takes_equal_parts_of_tasks_and_files(tmp_path):
    cfg = TasksConfig(names=("sums", "copy"), files=(f"nuts={written(tmp_path / 'a.jsonl', sums(0, 400))}",))
    sets, _ = read(cfg)
    chosen = held_out(30, cfg, sets)
    assert [sum(problem.task == name for problem in chosen) for name in ("sums", "copy", "nuts")] == [10, 10, 10]
    assert held_out(40, TasksConfig(), ()) == test_set(40)
    assert len(held_out(10_000, TasksConfig(names=(), files=cfg.files), sets)) == len(sets[0].test)


def test_malformed_records_are_refused_or_counted(tmp_path):
    bad = ["{", {"prompt": "x"}, {"prompt": "1+1?", "answer": ""}, [1], {**sums(3, 1)[0], "prompt": "another, same id"}]
    path = written(tmp_path / "a.jsonl", sums(0, 60) + bad)
    with pytest.raises(DataError, match=r"a\.jsonl, line 61 is no JSON.*on_bad_record"):
        read(TasksConfig(names=(), files=(path,)))
    sets, events = read(TasksConfig(names=(), files=(path,)), "count")
    assert events.n_bad == 5
    assert "line 65 has the id of" in events.bad["problem"].first[4]
    assert sum(len(part) for part in (sets[0].train, sets[0].val, sets[0].test)) + sets[0].overlapping == 60


def test_long_questions_are_left_out_and_counted(tmp_path):
    path = written(tmp_path / "a.jsonl", [*sums(0, 60), {"prompt": "word " * 100, "answer": 1}])
    (only,), _ = read(TasksConfig(names=(), files=(path,), max_question=80))
    assert only.too_long == 1


def test_code_is_refused_where_no_sandbox_holds(tmp_path, monkeypatch):
    records = [{"prompt": f"Add {i}.", "tests": [f"assert f(1) == {1 + i}"]} for i in range(60)]
    path = written(tmp_path / "code.jsonl", records)

    def none_holds() -> str:
        raise SandboxError("the sandbox does not hold on this machine")

    monkeypatch.setattr(judges, "mechanism", none_holds)
    with pytest.raises(SandboxError, match="does not hold"):
        read(TasksConfig(names=(), files=(path,)))


@pytest.mark.parametrize("answer", ["\\frac{{{i}}}{{2}}", "{i}.5"])
def test_mathematics_is_refused_without_its_reader(tmp_path, monkeypatch, answer):
    """Of plain numbers too: a model may answer with anything."""
    halves = [{"prompt": f"Half of {i}?", "answer": answer.format(i=i)} for i in range(60)]
    path = written(tmp_path / "a.jsonl", halves)
    monkeypatch.setattr(judges, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"a:\S+ asks for mathematics, .*sobre\[math\]"):
        read(TasksConfig(names=(), files=(path,)))


def test_too_few_problems_for_a_test_are_refused(tmp_path):
    few = [record for record in sums(0, 60) if split_of(content(one(tmp_path, record))) == "train"][:5]
    with pytest.raises(DataError, match="too few problems"):
        read(TasksConfig(names=(), files=(written(tmp_path / "few.jsonl", few),)))


def one(folder: Path, record: dict):
    from sobre.tasks.files import read_problems

    return read_problems(Path(written(folder / "one.jsonl", [record])), "x")[0]


def test_a_file_is_called_what_it_is_called_or_what_it_is_named():
    assert named_files("t", ("data/gsm8k_train.jsonl.gz", "mine=/x/y=z.jsonl")) == {
        "gsm8k_train": "data/gsm8k_train.jsonl.gz",
        "mine": "/x/y=z.jsonl",
    }
    for wrong in (("a.jsonl", "b/a.jsonl"), ("a=",), ("",)):
        with pytest.raises(ConfigError):
            named_files("t", wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"names": ("sums",), "files": ("sums=a.jsonl",)},
        {"files": ("a.jsonl",), "test_files": ("a.jsonl",)},
        {"test_files": ("a.jsonl",)},
        {"names": (), "test_files": ("a.jsonl",)},
        {"files": ("a.jsonl",), "max_question": -1},
    ],
)
def test_sets_that_cannot_be_told_apart_are_refused(wrong):
    with pytest.raises(ConfigError):
        TasksConfig(**wrong)


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere=/no/where\.jsonl is no file"):
        read(TasksConfig(names=(), files=("nowhere=/no/where.jsonl",)))
