"""The budget is read strictly, and every refusal says what would fit."""

import pytest

from sobre.errors import ConfigError
from sobre.plan.budget import MAX_SECONDS, MIN_FLOPS, MIN_SECONDS, parse_budget


def parse(text, price=0.08, **options):
    return parse_budget(text, price_usd_per_h=price, **options)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h", 3600), ("2gpuh", 7200), ("0.5h", 1800), ("1.5e3s", 1500), ("0.8usd", 36_000)],
)
def test_every_form_of_time_and_money_becomes_seconds(text, seconds):
    budget = parse(text)
    assert budget.kind == "seconds"
    assert budget.amount == pytest.approx(seconds)
    assert budget.text == text


def test_flops_stay_flops():
    budget = parse("3e18flop")
    assert (budget.kind, budget.amount, budget.usd) == ("flops", 3e18, None)


def test_device_hours_are_shared_by_the_devices():
    assert parse("2gpuh", n_devices=4).amount == 1800


def test_dollars_and_back():
    assert parse("0.8usd").usd == pytest.approx(0.8)
    assert parse("1h", price=2.0).usd == 2.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m",
        "10",
        "10 m",
        " 10m",
        "10m ",
        "10M",
        "-10m",
        "+10m",
        "1e400m",
        "nanm",
        "infs",
        "10m30s",
        "1,5h",
        "ten minutes",
    ]
    + [
        "0x10m",
        "1_000s",
        "10min",
        "5$",
        "$5",
        "1e3",
        ".5h",
        "5.h",
        "1e-3h",
        "१०m",
        "10m\n",
        "3 e18flop",
        "2 gpuh",
        "--",
        "10mm",
    ],
)
def test_anything_else_is_refused_with_the_forms(text):
    with pytest.raises(ConfigError, match="90s, 10m, 1h .*20usd .*2gpuh .*3e18flop"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("10 min", "10m"),
        ("10M", "10m"),
        ("10", "10m"),
        ("$5", "5usd"),
        ("5 dollars", "5usd"),
        ("3e18 FLOPs", "3e18flop"),
    ]
    + [("2 gpu-hours", "2gpuh"), ("90 sec", "90s"), ("3e+18flop", "3e18flop")],
)
def test_a_near_miss_is_told_what_was_meant(text, meant):
    with pytest.raises(ConfigError, match=rf"did you mean {meant}\?"):
        parse(text)


@pytest.mark.parametrize("text", ["0s", "1s", "89s", "1m", "0.0001usd", "0.001gpuh", "9e10flop", "0flop"])
def test_too_small_a_budget_names_the_smallest_and_that_one_is_accepted(text):
    with pytest.raises(ConfigError, match="too small: the smallest that works here is") as caught:
        parse(text)
    smallest = str(caught.value).rpartition(" ")[2]
    assert smallest[-2:] == text[-2:] or smallest == "90s"
    assert parse(smallest).amount >= {"seconds": MIN_SECONDS, "flops": MIN_FLOPS}[parse(smallest).kind]


@pytest.mark.parametrize("text", ["1e9h", "1e9usd", "1e99flop", "1e6gpuh"])
def test_more_than_a_machine_can_spend_in_a_year_is_refused(text):
    with pytest.raises(ConfigError, match="the largest is"):
        parse(text)


def test_the_smallest_budget_is_at_most_two_minutes():
    assert MIN_SECONDS <= 120 < MAX_SECONDS


def test_dollars_need_a_price():
    with pytest.raises(ConfigError, match="needs a price"):
        parse("5usd", price=0.0)
