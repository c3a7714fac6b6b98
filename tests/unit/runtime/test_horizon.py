"""The horizon ends a stage on its budget whatever the clock does, and a resumed run repeats its decisions."""

import random

import pytest

from sobre.runtime.clock import Meter
from sobre.runtime.events import EventLog
from sobre.runtime.horizon import FREEZE, Horizon


class HandClock:
    """A clock that the test moves."""

    def __init__(self):
        self.time = 0.0

    def now(self):
        return self.time


def drift(rng, step, elapsed):
    """Speed wanders by 40 % either way, and each step jitters."""
    drift.level = min(1.4, max(0.6, getattr(drift, "level", 1.0) + rng.gauss(0, 0.03)))
    return 0.1 * drift.level * rng.uniform(0.8, 1.25)


def slowdown(rng, step, elapsed):
    return 0.05 * rng.uniform(0.9, 1.1) * (1.0 if elapsed < 60 else 2.5)


def speedup(rng, step, elapsed):
    return 0.2 * rng.uniform(0.9, 1.1) * (1.0 if elapsed < 60 else 0.4)


def growing(rng, step, elapsed):
    """RL: answers get longer, and lengths differ from step to step."""
    return (1.0 + elapsed / 60) * rng.uniform(0.6, 1.5)


def saving(rng, step, elapsed):
    """Every fiftieth step pays for a saved state."""
    return 0.1 + (2.0 if step % 50 == 49 else 0.0)


def long_steps(rng, step, elapsed):
    return rng.uniform(3.0, 4.0)


def run_stage(path, cost, *, budget, guess, seed=0, stop_after=None):
    """Run until the stage ends (or the process is killed); return clock, log, progress of every step."""
    clock, rng = HandClock(), random.Random(seed)
    drift.level = 1.0
    log = EventLog(path)
    horizon = Horizon(log, Meter("seconds", 1e9, clock), "sft", budget=budget, guess=guess)
    step, progress = 0, []
    while not horizon.ended(step):
        progress.append(horizon.progress(step))
        clock.time += cost(rng, step, clock.time)
        step += 1
        if step == stop_after:
            break
    return clock.time, log, progress


@pytest.mark.parametrize("cost", [drift, slowdown, speedup, growing, saving, long_steps])
@pytest.mark.parametrize("guess", [10, 1200, 100_000])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.slow
def test_a_stage_ends_within_three_percent_of_its_budget_whatever_the_speed_does(
    tmp_path, cost, guess, seed, monkeypatch
):
    monkeypatch.setattr("sobre.schemas.lines.flush", lambda descriptor: None)
    used, log, progress = run_stage(tmp_path / "events.jsonl", cost, budget=120.0, guess=guess, seed=seed)
    assert used == pytest.approx(120.0, rel=0.03)
    assert progress == sorted(progress)
    assert progress[0] == 0.0
    assert progress[-1] > 0.9 or cost is long_steps or cost is growing
    assert len(log.events(kind="horizon")) <= 52


def test_a_sudden_slowdown_at_the_very_end_is_cut_off(tmp_path):
    used, log, _ = run_stage(
        tmp_path / "events.jsonl", lambda rng, step, elapsed: 0.1 if elapsed < 117 else 0.8, budget=120.0, guess=1200
    )
    assert used == pytest.approx(120.0, rel=0.02)
    assert log.events(kind="end")[0].data["reason"] == "budget"


def test_a_stage_of_fixed_steps_never_looks_at_the_clock(tmp_path):
    _, log, progress = run_stage(tmp_path / "events.jsonl", drift, budget=None, guess=40)
    assert progress == [step / 40 for step in range(40)]
    assert [event.kind for event in log.events()] == ["begin", "end"]


def test_flops_are_a_budget_like_seconds(tmp_path):
    meter = Meter("flops", 1e15, HandClock())
    horizon = Horizon(EventLog(tmp_path / "events.jsonl"), meter, "pretrain", budget=1e12, guess=7)
    step = 0
    while not horizon.ended(step):
        meter.add_flops(3.1e9)
        step += 1
    assert meter.used() == pytest.approx(1e12, rel=0.005)


@pytest.mark.parametrize("killed_at", [104, 233])
@pytest.mark.slow
def test_a_resumed_run_repeats_the_decisions_of_an_uninterrupted_one(tmp_path, killed_at):
    """State saved at step 100, killed later, resumed from 100 with the same clock: same events, same progress."""
    _, whole_log, whole = run_stage(tmp_path / "whole.jsonl", drift, budget=60.0, guess=100)

    clock, rng = HandClock(), random.Random(0)
    drift.level = 1.0
    path = tmp_path / "killed.jsonl"
    meter = Meter("seconds", 1e9, clock)
    horizon = Horizon(EventLog(path), meter, "sft", budget=60.0, guess=100)
    saved = None
    for step in range(killed_at):
        assert not horizon.ended(step)
        clock.time += drift(rng, step, clock.time)
        if step + 1 == 100:
            saved = (horizon.state(), meter.state(), clock.time, rng.getstate(), drift.level)

    horizon_state, meter_state, time, rng_state, drift.level = saved
    clock, log = HandClock(), EventLog(path)
    assert (log.frontier("sft") > 100) == (killed_at == 233)
    meter = Meter("seconds", 1e9, clock)
    meter.restore(meter_state)
    rng.setstate(rng_state)
    horizon = Horizon(log, meter, "sft", budget=1.0, guess=1)  # what was recorded wins over what is asked now
    horizon.restore(horizon_state)
    step, progress = 100, []
    while not horizon.ended(step):
        progress.append(horizon.progress(step))
        clock.time += drift(rng, step, time + clock.time)
        step += 1
    assert progress == whole[100:]
    decisions = [(e.step, e.kind, e.data.get("total"), e.data.get("progress")) for e in log.events()]
    assert decisions == [(e.step, e.kind, e.data.get("total"), e.data.get("progress")) for e in whole_log.events()]


def test_the_horizon_stands_still_near_the_end(tmp_path):
    """A machine that gets five times as fast in the last moments ends the stage early and is not given more steps."""
    used, log, progress = run_stage(
        tmp_path / "e.jsonl", lambda rng, step, elapsed: 0.1 if elapsed < 58.5 else 0.02, budget=60.0, guess=590
    )
    late = [event for event in log.events(kind="horizon") if event.data["used"] > 60.0 * (1 - FREEZE)]
    assert len(late) <= 1
    assert used == pytest.approx(60.0, rel=FREEZE)


def test_one_swapped_out_second_is_no_new_speed(tmp_path):
    clock = HandClock()
    horizon = Horizon(EventLog(tmp_path / "e.jsonl"), Meter("seconds", 1e9, clock), "sft", budget=None, guess=1000)
    for step in range(40):
        horizon.ended(step)
        clock.time += 30.0 if step == 20 else 0.1
    assert horizon.cost() == pytest.approx(0.1, rel=0.1)


def test_replay_ignores_the_clock_up_to_the_last_recorded_step(tmp_path):
    path = tmp_path / "events.jsonl"
    _, log, progress = run_stage(path, slowdown, budget=120.0, guess=500)
    clock = HandClock()
    horizon = Horizon(EventLog(path), Meter("seconds", 1e9, clock), "sft", budget=120.0, guess=500)
    step, replayed = 0, []
    while not horizon.ended(step):
        replayed.append(horizon.progress(step))
        clock.time += 1000.0 if step % 2 else 0.0
        step += 1
    assert replayed == progress
    assert EventLog(path).events() == log.events()


def test_a_new_horizon_is_said_in_words(tmp_path):
    clock = HandClock()
    horizon = Horizon(EventLog(tmp_path / "e.jsonl"), Meter("seconds", 1e9, clock), "rl", budget=100.0, guess=10)
    said = []
    for step in range(6):
        horizon.ended(step)
        said += [horizon.news] if horizon.news else []
        clock.time += 1.0
    assert said == ["rl: 100 steps instead of 10, at its recent speed"]
