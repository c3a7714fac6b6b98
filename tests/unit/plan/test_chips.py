"""The table of chips is complete and consistent, and wrong names, files and units say what would fit."""

from dataclasses import replace
from pathlib import Path

import pytest

from sobre.errors import ConfigError
from sobre.plan.chips import Chip, chip, chips, this_file, this_text
from sobre.plan.efficiency import FITTED
from sobre.plan.known import model
from sobre.plan.serving import serve
from sobre.plan.train import train
from sobre.plan.units import amount, context

WANTED = (
    "v100 a100-40 a100-80 a800 h100 h800 h20 h200 b200 gb200 b300 mi300x mi325x ascend-910b ascend-910c rtx4090"
    " rtx5090 m4-max tpu-v4"
)


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user's chips are looked for; it does not exist yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "sobre"


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


def test_a_user_s_own_folder_is_read_after_ours_and_a_named_file_after_that(tmp_path: Path, own_folder: Path):
    own_folder.mkdir(parents=True)
    one = "bf16 = {}\nmemory_gb = 24\nbandwidth = 900\nlink = 0\nnetwork = 1\nwatts = 300\n"
    (own_folder / "chips.toml").write_text("[h100]\n" + one.format(7) + "[mine]\n" + one.format(8))
    assert [chip(name).bf16 for name in ("h100", "mine", "h800")] == [7, 8, 989]
    (tmp_path / "named.toml").write_text("[mine]\n" + one.format(9))
    assert chip("mine", str(tmp_path / "named.toml")).bf16 == 9


def test_this_machine_says_who_measures_it_and_keeps_what_its_user_added(own_folder: Path):
    with pytest.raises(ConfigError, match="sobre doctor"):
        chip("this")
    measured = {"bf16": 0.002, "fp32": 0.05, "measured": True, "memory_gb": 8, "bandwidth": 9.5, "disk": 0.5}
    standing = {"node": 1, "link": 0, "network": 0.25, "watts": 16, "note": "two cores"}
    own_folder.mkdir(parents=True)
    this_file().write_text(this_text(standing | measured) + 'usd_per_h = 0.05\nprice_source = "electricity, 2026"\n')
    this_file().write_text(this_text({**measured, "bandwidth": 11.0}))
    found = chip("this")
    assert (found.usd_per_h, found.bandwidth, found.watts, found.note) == (0.05, 11.0, 16, "two cores")
    assert found.usual == "fp32"


def test_a_measured_rate_is_taken_as_it_is_and_a_data_sheet_s_is_not():
    sheet = Chip(name="x", bf16=100, memory_gb=80, bandwidth=9e6, link=0, network=1, node=1, watts=1, usd_per_h=None)
    drawn, fixed = model("smollm-135m"), {"recompute": "none"}
    times = [
        train(drawn, one, tokens=1e9, chips=1, batch_tokens=4096, fixed=fixed).parts["matrices"]
        for one in (sheet, replace(sheet, measured=True))
    ]
    assert times[1] == pytest.approx(times[0] * FITTED.matrix, rel=1e-3)


def test_thirty_two_bits_take_twice_the_room_and_the_rate_that_the_chip_has_for_them():
    assert chip("a100-80").peak("fp32") == 156e12  # TF32
    drawn, on = model("smollm-135m"), chip("h100")
    half, whole = (train(drawn, on, tokens=1e9, chips=1, precision=p, batch_tokens=8192) for p in ("bf16", "fp32"))
    assert whole.gpu_hours > 1.5 * half.gpu_hours
    fixed = ("weights", "gradients", "optimizer")
    assert sum(whole.memory[part] for part in fixed) == 16 * drawn.total
    assert whole.memory["activations"] > 1.5 * half.memory["activations"] or whole.layout != half.layout


@pytest.mark.parametrize(("line", "words"), [('bf16 = "fast"', "a number"), ("bf16 = true", "a number"),
                                             ("bf16 = 1\nnote = 3", "text in quotes")])  # fmt: skip
def test_a_value_of_the_wrong_kind_is_named(tmp_path: Path, line: str, words: str):
    own = tmp_path / "mine.toml"
    own.write_text(f"[mine]\n{line}\nmemory_gb = 24\nbandwidth = 900\nlink = 0\nnetwork = 1\nwatts = 300\n")
    with pytest.raises(ConfigError, match=words):
        chip("mine", str(own))


@pytest.mark.parametrize(("text", "value"), [("14.8T", 14.8e12), ("600B", 6e11), ("1.5e12", 1.5e12), ("2048", 2048)])
def test_amounts_are_read(text, value):
    assert amount(text, "tokens") == value


@pytest.mark.parametrize("text", ["14.8 T", "14,8T", "T", "-3B", "1e", "0", "3t", "inf", "١", "14.8", "1.23456e3"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(ConfigError, match="14.8T"):
        amount(text, "tokens")


def test_lengths_count_in_powers_of_two():
    assert (context("32k", "context"), context("4096", "context")) == (32_768, 4096)
    with pytest.raises(ConfigError, match="32k"):
        context("32M", "context")


def test_a_chip_of_one_s_own_that_nothing_joins_trains_alone(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[mine]\nbf16 = 100\nmemory_gb = 24\nbandwidth = 500\nlink = 0\nnetwork = 0\nwatts = 300\n")
    mine = chip("mine", str(file))
    assert train(model("qwen3-0.6b"), mine, tokens=1e9, chips=1).gpu_hours > 0
    assert serve(model("qwen3-0.6b"), mine).chips == 1
    with pytest.raises(ConfigError, match="nothing joins them"):
        train(model("qwen3-0.6b"), mine, tokens=1e9, chips=8)


@pytest.mark.parametrize("wrong", ["network = -5", "network = inf", "link = nan", "node = 1.5"])
def test_a_chip_s_numbers_are_finite_and_not_negative(tmp_path, wrong):
    file = tmp_path / "mine.toml"
    given = {"bf16": 100, "memory_gb": 24, "bandwidth": 500, "link": 0, "network": 0, "watts": 300}
    name = wrong.partition(" ")[0]
    file.write_text("\n".join(["[mine]", *(f"{key} = {value}" for key, value in given.items() if key != name), wrong]))
    with pytest.raises(ConfigError, match=name):
        chip("mine", str(file))
