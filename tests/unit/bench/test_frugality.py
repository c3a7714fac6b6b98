"""The race: who runs with what, which rates they get, and what is made of their figures."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest

from sobre.bench import frugality, nanochat_run, queue
from sobre.bench.config import FrugalityBench
from sobre.bench.result import Source
from sobre.bench.table import table
from sobre.config.load import decode, diff, read_recipe
from sobre.config.recipe import Recipe
from sobre.errors import ConfigError
from sobre.models.config import MemoryConfig, ModelConfig
from sobre.plan.count import params
from sobre.schemas import schema

HERE = Source("a" * 40, False, "0" * 32)
SILENT = lambda line: None  # noqa: E731
CFG = FrugalityBench(data=("x.txt",), seeds=2, lr_scales=(0.5, 1.0, 2.0), ladder=(0.25, 1.0))


@pytest.fixture
def still(monkeypatch):
    """The source does not change while these tests run."""
    monkeypatch.setattr(queue.Queue.__init__, "__kwdefaults__", {"max_cells": 0, "look": lambda: HERE})


def report(bits: float, wall_s: float) -> dict:
    said = {"metrics": {"steps": 3.0, "flops": 5.0}, "bits_per_byte": {"all": {"value": bits}, "x": {"value": bits}}}
    total = {"wall_s": wall_s, "flops": 7.0, "cost_usd": 0.01, "energy_j": None}
    bill = {"rows": [{"stage": "pretrain", "wall_s": wall_s, "flops": 7.0}], "total": total}
    budget = {"kind": "seconds", "amount": wall_s}
    return {"stages": {"pretrain": said}, "bill": bill, "budget": budget, "baselines": {}}


def test_contestants_differ_in_model_and_optimizer_alone_and_are_equally_large(tmp_path):
    found = {entry.contestant: entry.recipe for entry in frugality.entries(CFG, tmp_path, SILENT) if entry.share == 1}
    assert list(found) == list(CFG.contestants)
    for recipe in found.values():
        changed = {path.partition(".")[0] for path in diff(found["dense adamw"], recipe)}
        assert changed <= {"name", "model", "optim"}
    assert {name: recipe.optim.kind for name, recipe in found.items()} == {
        "dense adamw": "adamw",
        "dense muon": "muon",
        "deepseek-v3": "adamw",
        "ours": "muon",
        "ours without tables": "muon",
        "dense with tables": "muon",
    }
    assert [name for name, recipe in found.items() if recipe.model.n_mtp] == ["deepseek-v3"]
    assert [name for name, recipe in found.items() if recipe.model.memory.layers] == ["ours", "dense with tables"]
    bare = [replace(r.model, vocab_size=4096, memory=MemoryConfig(), n_mtp=0) for r in found.values()]
    active = [params(model).active for model in bare]
    assert max(active) / min(active) == pytest.approx(1, abs=0.005)


@pytest.mark.slow
def test_every_contestant_gets_its_own_best_rate_and_the_winner_its_recipe(tmp_path, monkeypatch, still):
    best = {"dense-adamw": 0.5, "ours": 2.0}
    quality = {"dense-adamw": 2.0, "dense-muon": 1.9, "ours": 1.8}
    ran: list[str] = []

    def run(recipe: Recipe, place: Path):
        (place / "run").mkdir()
        slug = recipe.name.removeprefix("frugality-")
        ran.append(f"{slug} {recipe.seed} {recipe.pretrain.lr_scale} {recipe.budget.amount}")
        wrong = abs(math.log2(recipe.pretrain.lr_scale / best.get(slug, 1.0)))
        seconds = float(recipe.budget.amount.removesuffix("s"))
        bits = quality[slug] + 0.1 * wrong + 0.001 * recipe.seed - 0.05 * math.log2(seconds / 600)
        return report(bits, seconds), seconds

    monkeypatch.setattr(frugality, "run_recipe", run)
    cfg = replace(CFG, contestants=("dense adamw", "dense muon", "ours"), folder=str(tmp_path))
    document = frugality.bench(cfg, SILENT)
    jsonschema.validate(document, schema("bench"))
    assert len(ran) == 3 * 3 + 3 * 2 * 2 - 3  # the sweep on the short rung; the first seed's best runs are part of it
    assert {line.split()[-1] for line in ran[:9]} == {"150s"}
    assert document["best_lr_scale"] == {"dense adamw seconds": 0.5, "dense muon seconds": 1.0, "ours seconds": 2.0}
    (edge,) = [note for note in document["notes"] if "edge of the sweep" in note]
    assert "dense adamw" in edge
    assert "dense muon" not in edge
    winner = document["race"]["winners"]["seconds"]
    assert winner == {"contestant": "ours", "mean": pytest.approx(1.8005), "clear": True}
    targets = {line["what"]: (line["value"], line["reached"]) for line in document["targets"]}
    reached = targets["ours: seconds to the final bits of dense adamw, over its own"]
    assert reached == (0.25, True)  # already better on the first rung: at most that
    written = decode(Recipe, [read_recipe(str(tmp_path / HERE.short / "winner-seconds.json"))])
    assert written.model.memory.layers == (2, 5)
    assert written.pretrain.lr_scale == 2.0
    svg = (tmp_path / HERE.short / "race.svg").read_text()
    assert all(name in svg for name in ("dense adamw", "dense muon", "ours"))
    assert "ours won, its band apart from all others" in table(document)
    assert frugality.bench(cfg, SILENT)["race"] == document["race"]
    assert len(ran) == 18  # nothing was run again


def test_seconds_to_a_quality_are_read_between_two_rungs():
    points = [{"seconds": 100.0, "mean": 2.2}, {"seconds": 400.0, "mean": 2.0}]
    assert frugality.seconds_to(points, 2.1) == pytest.approx(200)
    assert frugality.seconds_to(points, 2.3) == 100
    assert frugality.seconds_to(points, 1.9) is None


def test_the_best_of_ours_on_the_longest_rung_runs_against_the_rivals():
    ends = {"ours": 1.9, "dense with tables": 1.8, "dense adamw": 1.95, "dense muon": 1.7}
    points = [
        {"contestant": name, "kind": "seconds", "share": share, "seconds": 600 * share, "mean": end + 0.2 * (share < 1)}
        for name, end in ends.items()
        for share in (0.25, 1.0)
    ]
    found = {line["what"].removeprefix("dense with tables: "): line["value"] for line in frugality.targets(points)}
    assert found == {
        "seconds to the final bits of dense adamw, over its own": pytest.approx(0.25**0.75),
        "seconds to the final bits of dense muon, over its own": None,
    }


def test_an_equal_flops_race_and_reasoning_are_judged_by_their_own_figure(tmp_path):
    flops = replace(CFG, budget="", flops="8e12flop")
    assert {e.recipe.budget.amount for e in frugality.entries(flops, tmp_path, SILENT)} == {"2e12flop", "8e12flop"}
    thinking = replace(CFG, recipe="demo", reasoning=True)
    assert frugality.score_of(thinking) == "rl pass@1"
    assert frugality.entries(thinking, tmp_path, SILENT)[0].recipe.stages == ("pretrain", "sft", "rl")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"contestants": ("me",)}, "contestants="),
        ({"ladder": (0.5,)}, "with 1 among them"),
        ({"budget": ""}, "both empty"),
        ({"nanochat": "x", "reasoning": True}, "leave it out"),
    ],
)
def test_what_cannot_be_raced_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        replace(CFG, **wrong)


class Spelling:
    """A tokenizer of letters: "a" is 1, and 0 begins a document."""

    def get_bos_token_id(self) -> int:
        return 0

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 96 for letter in text]


def test_rows_of_the_peer_begin_with_a_document_and_are_full():
    texts = ["abc", "defgh", "ij", "klmnopqrstuvw"]
    rows = nanochat_run.packed(texts, Spelling(), 9)
    for _ in range(20):
        row = next(rows)
        assert len(row) == 10
        assert row[0] == 0


def test_the_peer_s_rate_rises_falls_and_ends_at_a_twentieth():
    assert nanochat_run.rate(0.0, 0) == pytest.approx(1 / 40)
    assert nanochat_run.rate(0.3, 100) == 1.0
    assert nanochat_run.rate(1.0, 1000) == pytest.approx(0.05)
    assert nanochat_run.momentum(0.1, 0) == 0.85
    assert nanochat_run.momentum(1.0, 1000) == pytest.approx(0.90)


def test_the_peer_is_scored_on_every_token_and_the_end_of_each_document():
    torch = pytest.importorskip("torch")

    def uniform(ids):
        return torch.zeros(*ids.shape, 32)

    found = nanochat_run.score(uniform, Spelling(), [("x", "abcdefghijklm"), ("y", "n")], 6)
    assert found == {"x": pytest.approx(5 * 14 / 13), "y": pytest.approx(10.0), "all": pytest.approx(5 * 16 / 14)}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"budget": "2m", "ladder": (0.1, 1.0)}, "too small"), ({"flops": "5m"}, "no budget in flops")],
)
def test_a_rung_that_cannot_run_is_refused_before_any_has_begun(wrong, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        frugality.entries(replace(CFG, **wrong), tmp_path, SILENT)


def test_a_folder_that_is_no_clone_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no clone of nanochat"):
        frugality.bench(replace(CFG, nanochat=str(tmp_path)), SILENT)


@pytest.mark.slow
def test_a_race_of_one_cell_really_runs(tmp_path, nano_config: ModelConfig, still):
    text = tmp_path / "text.jsonl"
    lines = [{"text": f"{n} and {n + 1} are {2 * n + 1}. " * 6, "source": f"s{n % 2}"} for n in range(2400)]
    text.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'name = "tiny"\n[tokenizer]\nvocab_size = 320\n[data]\nseq_len = 32\n'
        "[pretrain]\nsteps = 4\nbatch_tokens = 256\nmicro_tokens = 256\n[eval]\nbits_documents = 2\n"
    )
    cfg = FrugalityBench(
        recipe=str(recipe),
        budget="",
        flops="1e12flop",
        seeds=1,
        lr_scales=(1.0,),
        contestants=("ours",),
        data=(str(text),),
        model=nano_config,
        memory=MemoryConfig(layers=(1,), n_rows=100, dim=8),
        folder=str(tmp_path / "race"),
    )
    document = frugality.bench(cfg, SILENT)
    jsonschema.validate(document, schema("bench"))
    (point,) = document["race"]["points"]
    assert 0 < point["mean"] < 12
    figures = document["cells"][0]["figures"]
    assert {"pretrain bits per byte of s0", "pretrain bits per byte of s1", "usd", "flops"} <= set(figures)
    assert SimpleNamespace(**document["race"]["winners"]["flops"]).contestant == "ours"
