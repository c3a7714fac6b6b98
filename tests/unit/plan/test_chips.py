"""The table of chips is complete and consistent, and wrong names, files and units say what would fit."""

from pathlib import Path

import pytest

from sobre.errors import ConfigError
from sobre.plan.chips import chip, chips
from sobre.plan.units import amount, context

WANTED = (
    "v100 a100-40 a100-80 a800 h100 h800 h20 h200 b200 gb200 b300 mi300x mi325x ascend-910b ascend-910c rtx4090"
    " rtx5090 m4-max tpu-v4"
)


def test_the_table_has_the_chips_people_ask_for():
    assert {*WANTED.split()} <= chips().keys()


def test_the_export_versions_differ_from_their_originals_by_the_link_alone():
    for cut, whole in (("a800", "a100-80"), ("h800", "h100")):
        ours, theirs = chip(cut), chip(whole)
        assert (ours.bf16, ours.bandwidth, ours.memory_gb) == (theirs.bf16, theirs.bandwidth, theirs.memory_gb)
        assert ours.link == 400 < theirs.link
        assert "export" in ours.note


def test_every_price_has_a_date():
    for one in chips().values():
        assert one.usd_per_h is None or any(year in one.price_source for year in ("2024", "2025", "2026"))


def test_a_format_that_a_chip_lacks_runs_at_its_16_bit_rate():
    assert chip("h800").peak("fp8") == 1979e12
    assert chip("a100-80").peak("fp8") == chip("a100-80").peak("bf16") == 312e12
    with pytest.raises(ConfigError, match="no format"):
        chip("h100").peak("fp7")


def test_an_unknown_chip_lists_the_near_ones():
    with pytest.raises(ConfigError, match="h100"):
        chip("h10O")


def test_a_user_adds_a_chip_in_a_file(tmp_path: Path):
    own = tmp_path / "mine.toml"
    own.write_text("[mine]\nbf16 = 100\nmemory_gb = 24\nbandwidth = 900\nlink = 0\nnetwork = 1\nwatts = 300\n")
    assert chip("mine", str(own)).peak("bf16") == 100e12
    assert chip("h100", str(own)) == chip("h100")
    own.write_text("[mine]\nbf16 = 100\nmemory = 24\n")
    with pytest.raises(ConfigError, match="no key memory"):
        chip("mine", str(own))
    own.write_text("[mine]\nbf16 = 100\n")
    with pytest.raises(ConfigError, match="lacks memory_gb, bandwidth"):
        chip("mine", str(own))


@pytest.mark.parametrize(("text", "value"), [("14.8T", 14.8e12), ("600B", 6e11), ("1.5e12", 1.5e12), ("2048", 2048)])
def test_amounts_are_read(text, value):
    assert amount(text, "tokens") == value


@pytest.mark.parametrize("text", ["14.8 T", "14,8T", "T", "-3B", "1e", "0", "3t", "inf", "١"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(ConfigError, match="14.8T"):
        amount(text, "tokens")


def test_lengths_count_in_powers_of_two():
    assert (context("32k", "context"), context("4096", "context")) == (32_768, 4096)
    with pytest.raises(ConfigError, match="32k"):
        context("32M", "context")
