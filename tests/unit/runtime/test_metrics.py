"""Every step stands in metrics.jsonl once, kills and resumes included."""

import json

import pytest
from jsonschema import Draft202012Validator

from sobre.errors import RunError
from sobre.runtime.metrics import Metrics, read_metrics
from sobre.schemas import schema


def filled(path):
    metrics = Metrics(path)
    for stage, steps in (("pretrain", 3), ("sft", 5)):
        for step in range(steps):
            metrics.add(stage, step, loss=1.0 / (step + 1), load_LE=[[1, 2], [3, 4]], difficulty={"sort": 2}, note=None)
    metrics.flush()
    return metrics


def steps(path):
    return [(line["stage"], line["step"]) for line in read_metrics(path)]


def test_lines_wait_in_memory_and_reach_the_disk_with_flush(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.add("sft", 0, loss=1.0)
    assert steps(path) == []
    metrics.flush()
    metrics.flush()
    assert steps(path) == [("sft", 0)]


def test_lines_do_not_wait_longer_than_promised(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    monkeypatch.setattr("sobre.runtime.metrics.FLUSH_S", -1.0)
    metrics.add("sft", 0, loss=1.0)
    assert steps(path) == [("sft", 0)]


def test_resuming_cuts_what_will_run_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = filled(path)
    before = path.read_bytes()
    assert metrics.cut(["pretrain"], "sft", 5) == 0
    assert path.read_bytes() == before
    assert Metrics(path).cut(["pretrain"], "sft", 2) == 3
    assert steps(path)[-2:] == [("sft", 0), ("sft", 1)]
    assert Metrics(path).cut([], "pretrain", 1) == 4
    assert steps(path) == [("pretrain", 0)]
    assert before.startswith(path.read_bytes())


def test_cutting_a_missing_file_is_nothing(tmp_path):
    assert Metrics(tmp_path / "metrics.jsonl").cut([], "sft", 0) == 0


def test_a_torn_line_goes_when_the_file_is_opened_and_the_cut_fits_the_rest(tmp_path):
    path = tmp_path / "metrics.jsonl"
    filled(path)
    path.write_bytes(path.read_bytes()[:-7])
    metrics = Metrics(path)
    assert metrics.cut(["pretrain"], "sft", 3) == 1
    metrics.add("sft", 3, loss=0.5)
    metrics.flush()
    assert steps(path)[3:] == [("sft", 0), ("sft", 1), ("sft", 2), ("sft", 3)]


@pytest.mark.parametrize("value", [float("nan"), [1.0, float("inf")], {"a": [float("nan")]}])
def test_a_number_that_is_not_finite_is_an_error_that_names_it(tmp_path, value):
    with pytest.raises(RunError, match="metric loss=.* of sft at step 7 is not finite"):
        Metrics(tmp_path / "metrics.jsonl").add("sft", 7, loss=value)


def test_written_lines_follow_the_schema(tmp_path):
    path = tmp_path / "metrics.jsonl"
    filled(path)
    for line in path.read_text().splitlines():
        Draft202012Validator(schema("metrics")).validate(json.loads(line))
