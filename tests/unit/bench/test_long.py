"""Stories and twins: what the cells run, and what is made of their figures."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from sobre.bench import cells, queue, story, twin
from sobre.bench.config import StoryBench, TwinBench
from sobre.bench.result import Source
from sobre.bench.table import table
from sobre.config.load import decode, diff, read_recipe, to_dict
from sobre.config.recipe import Recipe
from sobre.plan.count import params
from sobre.schemas import schema

HERE = Source("a" * 40, False, "0" * 32)
SILENT = lambda line: None  # noqa: E731


@pytest.fixture(autouse=True)
def still(monkeypatch):
    """The source does not change while these tests run."""
    monkeypatch.setattr(queue.Queue.__init__, "__kwdefaults__", {"max_cells": 0, "look": lambda: HERE})


def report(bits: float = 2.0, *, kind: str = "seconds", **accuracies: float) -> dict:
    score = {"ci_low": 0.0, "ci_high": 1.0, "n": 10}
    stages = {
        stage: {
            "metrics": {"steps": 3.0},
            "pass_at_1": value,
            "by_task": {"sorting": {"value": value / 2}, "word": {"value": value}},
            **score,
        }
        for stage, value in accuracies.items()
    } or {"pretrain": {"metrics": {"steps": 3.0, "flops": 5.0}, "bits_per_byte": {"all": {"value": bits}}}}
    rows = [{"stage": "start", "wall_s": 20.0, "flops": 0.0}]
    rows += [{"stage": stage, "wall_s": 80.0 / len(stages), "flops": 1.0} for stage in stages]
    bill = {"rows": rows, "total": {"wall_s": 100.0, "flops": 7.0}}
    return {"stages": stages, "bill": bill, "budget": {"kind": kind, "amount": 100.0}, "baselines": {"xz -9": 4.2}}


def test_the_control_has_the_same_budget_with_the_share_of_rl_given_to_the_cold_start():
    found = story.recipes(StoryBench(recipe="demo", budget="9m"))
    demo, control = found["demo"], found["control"]
    assert control.budget.amount == demo.budget.amount == "9m"
    assert control.stages == ("pretrain", "sft")
    assert control.budget.split.sft == pytest.approx(demo.budget.split.sft + demo.budget.split.rl)
    assert set(diff(demo, control)) == {"name", "stages", "budget.split.sft"}
    assert list(story.recipes(StoryBench(recipe="text"))) == ["text"]
    assert list(story.recipes(StoryBench(recipe="demo", control=False))) == ["demo"]


def test_a_story_interleaves_its_contestants_and_compares_them_with_the_targets(tmp_path, monkeypatch):
    ran: list[tuple[str, int]] = []

    def run(recipe: Recipe, place: Path):
        ran.append((recipe.name, recipe.seed))
        (place / "run").mkdir()
        accuracy = {"sft": 0.6, "rl": 0.9} if "rl" in recipe.stages else {"sft": 0.7}
        return report(**accuracy), 105.0

    monkeypatch.setattr(story, "run_recipe", run)
    cfg = StoryBench(recipe="demo", seeds=2, folder=str(tmp_path))
    document = story.bench(cfg, SILENT)
    assert ran == [("demo", 0), ("demo-control", 0), ("demo-control", 1), ("demo", 1)]
    jsonschema.validate(document, schema("bench"))
    found = {line["what"]: (line["value"], line["reached"]) for line in document["targets"]}
    assert found["pass@1 after RL"] == (0.9, True)
    assert found["pass@1 of the weakest task"] == (0.45, False)
    assert found["points over the cold start"] == (pytest.approx(0.3), True)
    assert found["points over the control"] == (pytest.approx(0.2), True)
    assert found["share of the seconds in training or rollouts"] == (pytest.approx(0.8), True)
    assert found["wall seconds over the budget, most"] == (1.05, True)
    assert "missed" in table(document)
    assert story.bench(cfg, SILENT)["means"] == document["means"]
    assert len(ran) == 4  # nothing was run again


def test_an_unfinished_story_says_so_and_knows_no_target(tmp_path, monkeypatch):
    monkeypatch.setattr(
        story, "run_recipe", lambda recipe, place: ((place / "run").mkdir(), (report(sft=0.5), 90.0))[1]
    )
    document = story.bench(StoryBench(recipe="demo", seeds=2, folder=str(tmp_path), max_cells=1), SILENT)
    assert "1 of 4 cells are done" in document["notes"][0]
    assert document["targets"][0]["reached"] is None


def test_the_twins_differ_in_the_model_and_the_budget_alone(tmp_path):
    found = twin.recipes(TwinBench(data=("x.txt",)), tmp_path, SILENT)
    assert list(found) == ["experts seconds", "dense seconds", "experts flops", "dense flops"]
    for kind in twin.KINDS:
        changed = diff(found[f"experts {kind}"], found[f"dense {kind}"])
        assert {path.partition(".")[0] for path in changed} == {"name", "model"}
    assert set(diff(found["dense seconds"], found["dense flops"])) == {"name", "budget.amount"}
    experts, dense = (replace(found[f"{name} seconds"].model, vocab_size=4096) for name in ("experts", "dense"))
    assert params(dense).active / params(experts).active == pytest.approx(1, abs=0.005)


def test_both_twins_get_the_same_sweep_and_their_own_best_rate(tmp_path, monkeypatch):
    ran: list[tuple[str, int, float]] = []

    def run(recipe: Recipe, place: Path):
        (place / "run").mkdir()
        lr = recipe.pretrain.lr_scale
        ran.append((recipe.name, recipe.seed, lr))
        best = 2.0 if "experts" in recipe.name else 0.5
        return report(1.9 + abs(lr - best) + 0.1 * ("dense" in recipe.name)), 60.0

    monkeypatch.setattr(twin, "run_recipe", run)
    cfg = TwinBench(data=("x.txt",), folder=str(tmp_path), rounds=2)
    document = twin.bench(cfg, SILENT)
    jsonschema.validate(document, schema("bench"))
    assert len(ran) == 4 * 3 + 4  # the first seed's runs at the best rate are cells of the sweep
    assert document["best_lr_scale"] == {
        "experts seconds": 2.0,
        "dense seconds": 0.5,
        "experts flops": 2.0,
        "dense flops": 0.5,
    }
    assert len(document["sweep"]) == 12
    assert [line["winner"] for line in document["ratios"]] == ["experts", "experts"]
    assert document["means"]["dense flops"][twin.SCORE]["n"] == 2
    assert document["notes"] == []
    assert "experts won" in table(document)


def test_an_unfinished_sweep_chooses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(twin, "run_recipe", lambda recipe, place: ((place / "run").mkdir(), (report(), 60.0))[1])
    cfg = TwinBench(data=("x.txt",), folder=str(tmp_path), max_cells=5)
    document = twin.bench(cfg, SILENT)
    assert document["best_lr_scale"] == {}
    assert (len(document["sweep"]), document["means"]) == (5, {})
    assert "run again" in document["notes"][0]


def test_generated_text_is_made_once_and_read_as_documents(tmp_path):
    recipe = decode(Recipe, [read_recipe("nano")])
    path = twin.generated(tmp_path, recipe, 5, SILENT)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert len(rows) == 5
    assert all(row["text"] for row in rows)
    before = path.stat().st_mtime_ns
    assert twin.generated(tmp_path, recipe, 5, SILENT).stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_cell_runs_a_whole_recipe_and_its_figures_come_from_the_report(tmp_path):
    recipe = replace(decode(Recipe, [read_recipe("nano")]), seed=3)
    found, wall_s = cells.run_recipe(cells.recipe_of(to_dict(recipe)), tmp_path)
    assert found["seed"] == 3
    flat = cells.figures(found, wall_s)
    assert {"rl pass@1", "sft pass@1 of sorting", "pretrain bits per byte", "wall_s"} <= flat.keys()
    assert flat["peak memory MiB"] > 100  # torch alone is more
    weights = (tmp_path / "run" / "rl" / "model.safetensors").stat().st_size / 2**20
    assert weights < flat["model MiB"] < weights + 2
    scores = story.score_text(recipe, tmp_path / "run", _text_file(tmp_path), "en")
    assert 1 < scores["val bits per byte"] < 10
    cells.shrink(tmp_path)
    assert (tmp_path / "run" / "report.json").is_file()
    assert not (tmp_path / "run" / "base").exists()


def _text_file(folder: Path) -> Path:
    path = folder / "val.jsonl"
    rows = [{"text": "one and two", "lang": "en"}, {"text": "un et deux", "lang": "fr"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
