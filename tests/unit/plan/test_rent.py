"""What an hour costs, by whatever the price is named."""

import pytest

from sobre.app.run import SHORT_FLAGS, RunOptions
from sobre.config.recipe import load_recipe
from sobre.errors import ConfigError
from sobre.ledger.config import PriceConfig
from sobre.plan.budget import parse_budget
from sobre.plan.chips import chip
from sobre.plan.rent import rent


def test_a_chip_costs_its_rent_for_every_one_that_computes():
    h100 = chip("h100")
    assert rent(PriceConfig(machine="h100"), n_chips=4, n_nodes=2).usd_per_h == 4 * h100.usd_per_h
    assert h100.price_source in rent(PriceConfig(machine="h100")).source


def test_a_machine_costs_what_is_listed_and_ones_own_price_comes_first():
    assert rent(PriceConfig(), n_chips=16, n_nodes=2).usd_per_h == pytest.approx(2 * 0.0816)
    assert rent(PriceConfig(machine="h100", usd_per_h=0.5), n_chips=8).usd_per_h == 0.5


def test_a_name_without_a_price_lists_the_near_ones():
    with pytest.raises(ConfigError, match="no price for 'h10'; listed: .*h100"):
        rent(PriceConfig(machine="h10"))
    with pytest.raises(ConfigError, match="chip 'v100' has no rent"):
        rent(PriceConfig(machine="v100"))


def test_device_hours_of_a_chip_are_what_one_types():
    argv = ["text", "--budget", "2gpuh", "--chip", "h100", "--data", "notes"]
    recipe, _ = load_recipe(argv, RunOptions, prog="sobre run", shortcuts=SHORT_FLAGS)
    rate = rent(recipe.budget.price)
    budget = parse_budget(recipe.budget.amount, price_usd_per_h=rate.usd_per_h)
    assert (budget.kind, budget.amount) == ("seconds", 7200)
    assert budget.usd == pytest.approx(2 * chip("h100").usd_per_h)
