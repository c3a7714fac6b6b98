import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest

from sobre.config.base import config
from sobre.config.load import Layer, decode, read_recipe, recipe_names, to_dict, to_json
from sobre.config.recipe import Recipe, load_recipe
from sobre.errors import ConfigError
from sobre.models.config import GQAConfig
from sobre.rl.config import GRPOConfig, PublishedConfig


@config
class Options:
    out: str = ""


def test_the_resolved_recipe_decodes_to_itself() -> None:
    recipe = Recipe(model=Recipe().model, name="x")
    assert decode(Recipe, [Layer("memory", to_dict(recipe))]) == recipe


def test_one_key_chooses_attention_and_algorithm() -> None:
    tree = {"model": {"attention": {"kind": "gqa"}}, "rl": {"algorithm": {"kind": "grpo_published"}}}
    recipe = decode(Recipe, [Layer("memory", tree)])
    assert recipe.model.attention == GQAConfig()
    assert recipe.rl.algorithm == PublishedConfig()
    assert Recipe().rl.algorithm == GRPOConfig()


def test_budget_and_data_have_short_flags() -> None:
    recipe, options = load_recipe(["--budget", "5m", "--data", "a.txt", "b.jsonl", "--out", "o"], Options)
    assert (recipe.budget.amount, recipe.data.paths, options.out) == ("5m", ("a.txt", "b.jsonl"), "o")


@pytest.mark.parametrize("stages", [["sft", "pretrain"], ["rl", "rl"]])
def test_stages_come_once_and_in_order(stages: list[str]) -> None:
    with pytest.raises(ConfigError, match="in this order"):
        decode(Recipe, [Layer("memory", {"stages": stages})])


def test_chats_of_a_base_are_of_no_task_that_it_is_examined_on() -> None:
    tree = {"stages": ["pretrain", "rl"], "text": {"chat_names": ["sums", "word", "sorting"]}}
    with pytest.raises(ConfigError, match=r"both hold sorting, word: the base would have seen"):
        decode(Recipe, [Layer("memory", tree)])
    decode(Recipe, [Layer("memory", {**tree, "tasks": {"names": ["countdown"]}})])


@pytest.mark.slow
def test_the_shipped_schema_is_that_of_the_recipe_and_accepts_every_config() -> None:
    path = Path(__file__).resolve().parents[3] / "scripts" / "schema.py"
    spec = importlib.util.spec_from_file_location("schema_script", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.TARGET.read_text(encoding="utf-8") == script.text(), "run `python scripts/schema.py`"
    for name in recipe_names():
        jsonschema.validate(json.loads(to_json(decode(Recipe, [read_recipe(name)]))), json.loads(script.text()))
