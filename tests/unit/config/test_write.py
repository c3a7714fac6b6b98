"""A configuration written as TOML says what differs from the defaults, and is read back as it was."""

import tomllib
from dataclasses import replace

import pytest

from sobre.config.load import Layer, decode, read_recipe, recipe_names
from sobre.config.recipe import Recipe
from sobre.config.write import to_toml
from sobre.models.config import DenseConfig, GQAConfig, MLAConfig, ModelConfig


def again(cfg: Recipe) -> Recipe:
    return decode(Recipe, [Layer("written", tomllib.loads(to_toml(cfg)))])


def test_the_defaults_are_nothing_to_say():
    assert to_toml(Recipe()).strip() == ""
    assert to_toml(Recipe(), ("what: nothing",)) == "# what: nothing\n"


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_read_back_as_it_was(name):
    cfg = decode(Recipe, [read_recipe(name)])
    assert again(cfg) == cfg


def test_a_table_of_another_kind_is_whole_though_it_shares_numbers_with_the_default():
    """Rotary width 16 is latent attention's default and not grouped attention's: left out, it would be read as 0."""
    shared = MLAConfig().rope_dim
    assert shared != GQAConfig().rope_dim
    attention = GQAConfig(n_heads=4, n_kv_heads=2, head_dim=32, rope_dim=shared)
    cfg = Recipe(model=ModelConfig(attention=attention, ffn=DenseConfig()))
    assert again(cfg) == cfg
    assert again(replace(cfg, name='quo"ted')).name == 'quo"ted'
