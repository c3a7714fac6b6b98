"""The comparison of RL with two ways to teach: who is made once, who spends the same, and what is compared."""

import jsonschema
import pytest

from sobre.bench import distill, queue
from sobre.bench.config import DistillBench
from sobre.bench.result import Source
from sobre.bench.table import table
from sobre.errors import ConfigError
from sobre.schemas import schema

HERE = Source("a" * 40, False, "0" * 32)
SCORES = {"rl": 0.3, "distill-answers": 0.4, "distill-on-policy": 0.5, "distill-more-cold-start": 0.35}


@pytest.fixture(autouse=True)
def still(monkeypatch):
    """The source does not change while these tests run."""
    monkeypatch.setattr(queue.Queue.__init__, "__kwdefaults__", {"max_cells": 0, "look": lambda: HERE})


def test_teacher_and_student_have_one_tokenizer_and_the_contestants_one_budget_and_start(tmp_path):
    cfg = DistillBench(budget="120s")
    made = distill.begin(cfg)
    teacher, student = made["teacher"], made["student"]
    for section in ("tokenizer", "text", "tasks", "data", "seed"):
        assert getattr(teacher, section) == getattr(student, section)
    assert student.model.ffn.kind == "dense"
    assert student.model.d_model < teacher.model.d_model
    found = {name: distill.contestant(name, cfg, tmp_path / "t", tmp_path / "s") for name in distill.CONTESTANTS}
    assert {recipe.budget.amount for recipe in found.values()} == {"120s"}
    assert {recipe.start.model for recipe in found.values()} == {str(tmp_path / "s" / "sft")}
    assert {recipe.eval for recipe in found.values()} == {student.eval}
    assert [found[name].distill.method for name in ("answers", "on-policy")] == ["text", "on_policy"]
    assert found["answers"].teacher("distill") == str(tmp_path / "t" / "rl")
    assert found["more cold start"].sft.lr_scale == found["answers"].distill.lr_scale


def test_cells_are_done_once_and_the_points_are_told(tmp_path, monkeypatch):
    ran: list[str] = []

    def run(recipe, place):
        ran.append(recipe.name)
        (place / "run").mkdir()
        score = SCORES.get(recipe.name if "distill" in recipe.name else "rl", SCORES["rl"])
        score = {"n": 9, "ci_low": 0.0, "ci_high": 1.0, "pass_at_1": score, "metrics": {"steps": 3.0}}
        bill = {
            "rows": [{"stage": recipe.stages[-1], "wall_s": 1.0, "flops": 5.0}],
            "total": {"wall_s": 1.0, "flops": 5.0},
        }
        stages = {stage: score for stage in recipe.stages}
        return {"stages": stages, "bill": bill, "budget": {"kind": "flops", "amount": 5.0}, "baselines": {}}, 2.0

    monkeypatch.setattr(distill, "run_recipe", run)
    cfg = DistillBench(folder=str(tmp_path), seeds=1)
    document = distill.bench(cfg, lambda line: None)
    assert ran[:2] == ["distill-teacher", "distill-student"]
    assert len(ran) == 6
    jsonschema.validate(document, schema("bench"))
    found = {line["what"]: line["value"] for line in document["targets"]}
    assert found["points of the teacher's answers over RL"] == pytest.approx(0.1)
    assert found["points of on-policy distillation over the teacher's answers"] == pytest.approx(0.1)
    assert found["points of RL over more cold start"] == pytest.approx(-0.05)
    assert "missed" in table(document)
    assert distill.bench(cfg, lambda line: None)["means"] == document["means"]
    assert len(ran) == 6


def test_an_unfinished_comparison_says_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "run_recipe", lambda recipe, place: pytest.fail("nothing is run"))
    monkeypatch.setattr(queue.Queue, "run", lambda self, cells, work: [])
    document = distill.bench(DistillBench(folder=str(tmp_path)), lambda line: None)
    assert document["notes"] == ["0 models and 0 contestants are done; run it again to go on"]
    assert {line["reached"] for line in document["targets"]} == {None}


def test_a_comparison_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="budget '6e9flop' is too small"):
        DistillBench(student_flops="6e9flop")
    with pytest.raises(ConfigError, match="seeds=0"):
        DistillBench(seeds=0)
