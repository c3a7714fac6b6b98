"""The meter counts useful work, in the unit of the budget."""

import time

import pytest

from sobre.runtime.clock import Meter, SystemClock, process_age_s


class HandClock:
    def __init__(self):
        self.time = 100.0

    def now(self):
        return self.time


def test_seconds_count_from_the_command_s_start():
    clock = HandClock()
    meter = Meter("seconds", 60.0, clock, head_start_s=4.0)
    clock.time += 10
    assert meter.used() == 14.0
    assert meter.remaining() == 46.0


def test_flops_count_what_was_added_and_no_time():
    clock = HandClock()
    meter = Meter("flops", 1e12, clock)
    clock.time += 10
    meter.add_flops(4e11)
    assert meter.used() == 4e11
    assert meter.remaining() == 6e11
    assert meter.seconds == 10.0


def test_a_resumed_meter_counts_neither_lost_steps_nor_the_second_start():
    clock = HandClock()
    meter = Meter("seconds", 60.0, clock)
    clock.time += 20
    meter.add_flops(5.0)
    saved = meter.state()
    clock.time += 7  # lost to the kill
    clock.time += 1000  # the night
    again = Meter("seconds", 60.0, clock, head_start_s=3.0)
    clock.time += 2  # loading
    again.restore(saved)
    clock.time += 1
    assert again.used() == 21.0
    assert again.flops == 5.0


def test_an_overdrawn_budget_shows_as_negative():
    clock = HandClock()
    meter = Meter("seconds", 5.0, clock)
    clock.time += 6
    assert meter.remaining() == -1.0


def test_the_system_clock_moves_forward_and_the_process_has_an_age():
    clock = SystemClock()
    first = clock.now()
    time.sleep(0.01)
    assert clock.now() - first >= 0.009
    age = process_age_s()
    assert 0.0 <= age < 3600
    time.sleep(0.05)
    assert process_age_s() - age == pytest.approx(0.05, abs=0.05)
