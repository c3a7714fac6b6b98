"""The bill adds up, on the disk, whatever kills the process."""

import dataclasses
import json
import random

import pytest
from jsonschema import Draft202012Validator

from sobre.errors import ConfigError, RunError
from sobre.ledger.config import PriceConfig
from sobre.ledger.ledger import Entry, Ledger, bill
from sobre.ledger.prices import Price, price, prices
from sobre.schemas import lines, schema

PRICE = Price(0.09, "a test, 2026-11-22")


def entry(stage="sft", start=0, end=10, **changes):
    return dataclasses.replace(
        bill(stage, (start, end), wall_s=40.0, tokens=8192, flops=2e12, price=PRICE, peak_flops=5e11, wasted_s=1.5),
        **changes,
    )


def test_a_bill_is_hours_times_the_stated_price_and_a_share_of_the_peak():
    one = entry()
    assert one.cost_usd == pytest.approx(40 / 3600 * 0.09)
    assert one.share_of_peak == pytest.approx(0.1)
    assert one.price_source == "a test, 2026-11-22"
    assert bill("sft", (0, 1), wall_s=1, tokens=1, flops=1, price=PRICE).share_of_peak is None


def test_two_devices_share_the_peak_and_cost_the_machine_s_price():
    two = bill("sft", (0, 1), wall_s=10, tokens=1, flops=1e12, price=PRICE, n_devices=2, peak_flops=1e11)
    assert two.device_s == 20
    assert two.share_of_peak == pytest.approx(0.5)
    assert two.cost_usd == PRICE.usd(10)


def test_totals_are_the_sums_of_the_entries_by_stage_and_over_all(tmp_path):
    rng, ledger, made = random.Random(0), Ledger(tmp_path / "ledger.jsonl"), []
    for stage in ("pretrain", "sft", "rl"):
        for step in range(0, 50, 10):
            wall = rng.uniform(1, 60)
            made.append(entry(stage, step, step + 10, wall_s=wall, wasted_s=wall / 9, tokens=rng.randrange(9**6)))
            assert ledger.append(made[-1])
    for stage in (None, "sft"):
        mine = [each for each in made if stage in (None, each.stage)]
        total = Ledger(ledger.path).total(stage)
        for field in ("wall_s", "device_s", "tokens", "flops", "cost_usd", "wasted_s"):
            assert getattr(total, field) == pytest.approx(sum(getattr(each, field) for each in mine))
    assert ledger.stages() == ["pretrain", "sft", "rl"]


def test_an_empty_ledger_totals_nothing(tmp_path):
    total = Ledger(tmp_path / "ledger.jsonl").total()
    assert (total.wall_s, total.cost_usd, total.energy_j, total.energy_source) == (0, 0, None, "unknown")


def test_energy_is_only_as_known_as_its_weakest_entry(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(entry(end=1, energy_j=5.0, energy_source="measured"))
    assert (ledger.total().energy_j, ledger.total().energy_source) == (5.0, "measured")
    ledger.append(entry(start=1, end=2, energy_j=7.0, energy_source="estimated"))
    assert (ledger.total().energy_j, ledger.total().energy_source) == (12.0, "estimated")
    ledger.append(entry(start=2, end=3))
    assert (ledger.total().energy_j, ledger.total().energy_source) == (None, "unknown")


def test_appending_the_same_steps_again_changes_nothing(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.append(entry())
    before = ledger.path.read_bytes()
    assert not ledger.append(entry())
    assert not Ledger(ledger.path).append(entry(wall_s=99.0))
    assert ledger.path.read_bytes() == before


def test_steps_are_never_paid_twice(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(entry(start=10, end=20))
    for start, end in ((0, 11), (19, 30), (12, 15), (0, 40)):
        with pytest.raises(RunError, match="overlap with 10..20, which are paid already"):
            ledger.append(entry(start=start, end=end))
    assert ledger.append(entry(start=20, end=20))
    assert ledger.append(entry("rl", 12, 15))


@pytest.mark.slow
def test_a_kill_at_any_byte_loses_and_doubles_nothing(tmp_path):
    """State first, with the entry inside it, then the ledger; a resumed run appends the state's entry again."""
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append(entry(start=0, end=10, price_source="é"))
    one = path.stat().st_size
    in_state = entry(start=10, end=20)
    ledger.append(in_state)
    whole = path.read_bytes()
    for size in range(one, len(whole) + 1):
        path.write_bytes(whole[:size])
        resumed = Ledger(path)
        resumed.append(in_state)
        assert path.read_bytes() == whole
        assert [each.step_from for each in Ledger(path).entries()] == [0, 10]


def test_a_whole_line_without_its_newline_is_kept(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path).append(entry())
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert Ledger(path).entries() == [entry()]
    assert path.read_bytes().endswith(b"\n")


def test_an_entry_is_on_the_disk_when_append_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(lines, "flush", synced.append)
    Ledger(tmp_path / "ledger.jsonl").append(entry())
    assert len(synced) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wall_s": -1.0}, "wall_s=-1.0"),
        ({"flops": float("nan")}, "flops=nan"),
        ({"cost_usd": float("inf")}, "cost_usd=inf"),
        ({"wasted_s": 41.0}, "wasted_s=41.0 exceeds wall_s=40.0"),
        ({"energy_j": 3.0}, "does not fit energy_source='unknown'"),
        ({"energy_source": "measured"}, "energy_j=None does not fit"),
        ({"step_from": 11}, "in order"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(changes, message):
    with pytest.raises(RunError, match=message):
        entry(**changes)


def test_a_damaged_ledger_names_the_line(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append(entry())
    ledger.append(entry(start=10, end=20))
    first, second, _ = path.read_text().split("\n")
    path.write_text(f"{first[:30]}\n{second}\n")
    with pytest.raises(RunError, match="ledger.jsonl, line 1: not a JSON line"):
        Ledger(path)
    path.write_text(f"{first}\n" + second.replace('"tokens"', '"token"') + "\n")
    with pytest.raises(RunError, match="ledger.jsonl, line 2: not a ledger entry of schema 1: token, tokens"):
        Ledger(path)


def test_written_lines_follow_the_schema(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(entry())
    ledger.append(entry("rl", energy_j=4.0, energy_source="measured", share_of_peak=None))
    validator = Draft202012Validator(schema("ledger"))
    records = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    for record in records:
        validator.validate(record)
    assert set(records[0]) == {"schema", *(field.name for field in dataclasses.fields(Entry))}
    assert not validator.is_valid({**records[0], "more": 1})


def test_the_listed_price_is_dated_and_has_a_source():
    listed = price(PriceConfig())
    assert listed.usd_per_h > 0
    for each in prices().values():
        assert each.source.rpartition(", ")[2].startswith("20")


def test_an_own_price_wins_and_free_is_a_price():
    assert price(PriceConfig(usd_per_h=0.0, source="solar")) == Price(0.0, "solar")
    assert "not stated" in price(PriceConfig(usd_per_h=1.0)).source


def test_an_unknown_machine_is_told_the_near_ones():
    with pytest.raises(ConfigError, match="no price for 'cpu-2-core'; listed: cpu-2-cores"):
        price(PriceConfig(machine="cpu-2-core"))
    with pytest.raises(ConfigError, match="usd_per_h=-1"):
        PriceConfig(usd_per_h=-1.0)
