"""What a budget buys: laws as in their papers, dense for little money, a mixture for much, a recipe that loads."""

import json
import tomllib

import jsonschema
import pytest

from sobre.config.load import Layer, decode
from sobre.config.recipe import Recipe
from sobre.errors import ConfigError
from sobre.plan import count
from sobre.plan.buy import SPLIT, buy, recipe
from sobre.plan.chips import chip
from sobre.plan.known import model
from sobre.plan.laws import LAWS, expected_loss, leverage
from sobre.schemas import schema


def test_chinchilla_s_own_model_has_its_published_loss():
    """70B parameters, 1.4T tokens: 1.94 by the first law (arXiv 2203.15556, 3.3), and the refit is near."""
    refit, own = (law.loss(70e9, 1.4e12) for law in LAWS)
    assert own == pytest.approx(1.94, abs=0.01)
    assert refit == pytest.approx(own, abs=0.06)


def test_a_mixture_counts_for_more_than_its_active_parameters_and_the_more_the_larger_the_run():
    v3 = model("deepseek-v3")
    assert 1 < leverage(v3, 1e16) < leverage(v3, 1e20) < leverage(v3, 1e24) == leverage(v3, 1e25)
    assert leverage(model("llama-3.1-8b"), 1e24) == 1.0
    found = expected_loss(v3, 14.8e12, 3e24)
    assert found.low < found.value < found.high


def test_minutes_buy_a_dense_model_and_dollars_a_mixture():
    minutes, money = buy("10m", chip("h100"), 1), buy("200usd", chip("h100"), 8)
    assert minutes.best.kind == "dense"
    assert money.best.kind == "mixture"
    assert "better buy" in minutes.verdict
    assert money.best.loss.value < minutes.best.loss.value


def test_the_best_offer_is_the_best_and_the_money_is_all_spent():
    found = buy("200usd", chip("h100"), 8)
    assert found.second.loss.value >= found.best.loss.value
    assert found.other.kind != found.best.kind
    assert sum(SPLIT.values()) == pytest.approx(1)
    assert found.hours * 2.55 == pytest.approx(200)
    assert found.best.plan.gpu_hours == pytest.approx(found.hours * SPLIT["pretrain"])


def test_a_budget_in_flops_is_spent_in_flops():
    found = buy("3e20flop", chip("a100-80"), 8)
    plan = found.best.plan
    assert plan.flops_per_token * plan.tokens == pytest.approx(3e20 * SPLIT["pretrain"])


def test_more_money_never_buys_a_worse_model():
    losses = [buy(f"{usd}usd", chip("h800"), 8).best.loss.value for usd in (5, 50, 500, 5000)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("text", ["10m", "200usd"])
def test_the_recipe_that_is_written_is_one_that_run_takes(text):
    found = buy(text, chip("h100"), 1)
    read = decode(Recipe, [Layer("written", tomllib.loads(recipe(found, "mine")))])
    assert not read.budget.choose_model
    assert read.model.d_model == found.best.cfg.d_model
    whole = count.params(found.best.cfg)
    assert whole.total == found.best.plan.model.total
    assert read.budget.price.usd_per_h == 2.55
    assert read.budget.amount == text


def test_what_cannot_be_bought_says_why():
    with pytest.raises(ConfigError, match="needs a rent"):
        buy("20usd", chip("m4-max"), 1)
    with pytest.raises(ConfigError, match="smallest"):
        buy("1s", chip("h100"), 1)


def test_the_document_is_what_its_schema_says():
    jsonschema.validate(json.loads(json.dumps(buy("20usd", chip("h100"), 1).to_dict())), schema("planning"))
