"""Contestants take turns, and a ratio is a speed over a speed."""

import pytest

from sobre.bench.timing import Timing, interleave, medians, ratio


def test_every_contestant_runs_once_a_round_and_the_first_one_changes():
    turns: list[str] = []
    works = {name: (lambda name=name: turns.append(name)) for name in "abc"}
    rounds = interleave(works, rounds=3, warmup=1, say=lambda line: None)
    assert "".join(turns) == "abc" + "abc" + "bca" + "cab"
    assert [set(round_) for round_ in rounds] == [set("abc")] * 3


def test_a_ratio_above_one_means_faster_and_its_median_is_taken_over_rounds():
    rounds = [
        {"fast": Timing(1.0, 1.0), "slow": Timing(2.0, 3.0)},
        {"fast": Timing(10.0, 1.0), "slow": Timing(30.0, 5.0)},  # a slow moment strikes both
        {"fast": Timing(1.0, 1.0), "slow": Timing(9.0, 4.0)},
    ]
    found = ratio(rounds, "fast", "slow", units={"fast": 1.0, "slow": 1.0}, target=2.5)
    assert found["rounds"] == [2.0, 3.0, 9.0]
    assert (found["median"], found["cpu_median"], found["target"]) == (3.0, 4.0, 2.5)


def test_who_does_more_in_the_same_time_is_faster():
    rounds = [{"much": Timing(1.0, 1.0), "little": Timing(1.0, 1.0)}]
    units = {"much": 60.0, "little": 20.0}
    assert ratio(rounds, "much", "little", units=units)["median"] == 3.0
    assert medians(rounds, units, "tokens")["much"] == {"wall_s": 1.0, "cpu_s": 1.0, "per_s": 60.0, "unit": "tokens"}


def test_seconds_of_a_turn_are_seconds():
    import time

    rounds = interleave({"nap": lambda: time.sleep(0.02)}, rounds=1, warmup=0, say=lambda line: None)
    assert rounds[0]["nap"].wall_s == pytest.approx(0.02, abs=0.015)
    assert rounds[0]["nap"].cpu_s < 0.015
