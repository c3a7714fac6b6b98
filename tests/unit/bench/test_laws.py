"""The ladder of trainings under our own scaling law: fixed steps, one text, a fit when there are enough cells."""

import json
from dataclasses import replace

import jsonschema
import pytest

from sobre.bench import laws, queue
from sobre.bench.config import LawsBench
from sobre.bench.result import Source
from sobre.bench.table import table
from sobre.config.load import decode, read_recipe
from sobre.config.recipe import Recipe
from sobre.errors import ConfigError
from sobre.plan.count import flops_per_token
from sobre.schemas import schema

HERE = Source("a" * 40, False, "0" * 32)
SILENT = lambda line: None  # noqa: E731


@pytest.fixture(autouse=True)
def still(monkeypatch):
    """The source does not change while these tests run."""
    monkeypatch.setattr(queue.Queue.__init__, "__kwdefaults__", {"max_cells": 0, "look": lambda: HERE})


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    folder = tmp_path_factory.mktemp("laws")
    words = "the of and to in a is that for it as was with be by on not he his but".split()
    texts = [" ".join(words[(i * j) % len(words)] for j in range(1, 200)) for i in range(60)]
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i, text in enumerate(texts)))
    base = folder / "small.toml"
    base.write_text('name = "small"\n[model.attention]\nkind = "gqa"\n[model.ffn]\nkind = "dense"\n'
                    "[tokenizer]\nvocab_size = 320\n[data]\nseq_len = 32\nholdout_fraction = 0.1\n"
                    "[pretrain]\nbatch_tokens = 64\nmicro_tokens = 64\n")  # fmt: skip
    return LawsBench(recipe=str(base), data=(str(path),), sizes=("32x1", "32x2", "64x1"), flops=(2e7, 2e8),
                     ratio=(0.001, 3.0), folder=str(folder / "out"), held_out=2)  # fmt: skip


def test_a_cell_is_as_many_steps_as_its_flops_buy_and_one_out_of_proportion_is_named(cfg):
    recipe = decode(Recipe, [read_recipe(cfg.recipe)])
    found, skipped = laws.cells(replace(cfg, ratio=(0.001, 0.03)), recipe)
    assert skipped
    assert len(found) + len(skipped) == 6
    for cell in found:
        model = laws.sized(recipe, cell.settings["size"])
        spent = cell.settings["steps"] * 64 * flops_per_token(model, 32).train
        assert spent == pytest.approx(float(cell.contestant.split()[1].removesuffix("flop")), rel=0.6)
        assert cell.settings["steps"] * 64 / laws.multiplied(model) <= 0.03


@pytest.mark.slow
def test_the_ladder_is_trained_once_and_fitted_and_a_second_start_repeats_nothing(cfg):
    said: list[str] = []
    document = laws.bench(cfg, said.append)
    jsonschema.validate(document, schema("bench"))
    assert len([line for line in said if line.startswith("cell ")]) == 6
    law = document["law"]
    assert len(law["points"]) == 6
    longest = [p["loss"] for p in law["points"] if p["flops"] > 1.5e8]
    shortest = [p["loss"] for p in law["points"] if p["flops"] < 3e7]
    assert max(longest) < min(shortest)
    for point in law["points"]:
        told = law["e"] + law["a"] / point["n"] ** law["alpha"] + law["b"] / point["d"] ** law["beta"]
        assert told / point["loss"] - 1 == pytest.approx(point["fitted"])
    assert "root mean square when left out" in table(document)
    again: list[str] = []
    assert laws.bench(cfg, again.append)["law"] == law
    assert again == []


def test_a_cell_gives_the_same_figures_again(cfg):
    first = laws.bench(replace(cfg, sizes=("32x1",), flops=(2e7,)), SILENT)
    folder = cfg.folder + "-again"
    again = laws.bench(replace(cfg, sizes=("32x1",), flops=(2e7,), folder=folder), SILENT)
    assert again["law"] is None
    assert again["cells"][0]["figures"] == first["cells"][0]["figures"]
    assert "32x1" in table(again)


def test_bad_wishes_are_refused():
    for bad in (
        {},
        {"data": ("x",), "sizes": ("96",)},
        {"data": ("x",), "flops": (0.0,)},
        {"data": ("x",), "seeds": 0},
    ):
        with pytest.raises(ConfigError):
            LawsBench(**bad)
