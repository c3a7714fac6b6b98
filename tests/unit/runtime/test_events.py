"""Decisions are on the disk before they take effect, and replay repeats them."""

import os

import pytest

from sobre.errors import RunError
from sobre.runtime.events import EventLog
from sobre.schemas import lines


def test_an_event_is_on_the_disk_when_append_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(lines, "flush", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    path = tmp_path / "events.jsonl"
    EventLog(path).append("sft", 3, "horizon", {"total": 9})
    assert path.stat().st_size in synced


def test_events_come_back_in_order_and_can_be_filtered(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.append("sft", 0, "begin", {"total": 9})
    log.append("sft", 4, "horizon", {"total": 7})
    log.append("rl", 0, "begin", {"total": 3})
    again = EventLog(log.path)
    assert again.events() == log.events()
    assert [event.step for event in again.events("sft")] == [0, 4]
    assert [event.stage for event in again.events(kind="begin")] == ["sft", "rl"]


def test_replay_speaks_up_to_the_last_recorded_step_silence_included(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.append("rl", 0, "begin", {"total": 10})
    log.append("rl", 5, "horizon", {"total": 8})
    again = EventLog(log.path)
    new = {"total": 99}
    assert again.decide("rl", 0, "begin", lambda: new) == {"total": 10}
    assert again.decide("rl", 3, "horizon", lambda: new) is None
    assert again.decide("rl", 5, "horizon", lambda: new) == {"total": 8}
    assert again.decide("rl", 5, "curriculum", lambda: new) == new
    assert again.decide("rl", 6, "horizon", lambda: None) is None
    assert again.decide("rl", 7, "horizon", lambda: new) == new
    assert [event.step for event in EventLog(log.path).events("rl")] == [0, 5, 5, 7]


def test_each_stage_is_replayed_on_its_own(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.append("sft", 50, "end", {})
    assert log.decide("rl", 0, "begin", lambda: {"total": 1}) == {"total": 1}


def test_a_decision_is_taken_once_and_never_in_the_past(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.append("sft", 5, "horizon", {})
    with pytest.raises(RunError, match="decided before"):
        log.append("sft", 5, "horizon", {})
    with pytest.raises(RunError, match="comes after step 5"):
        log.append("sft", 4, "horizon", {})


@pytest.mark.slow
def test_a_torn_last_line_is_dropped_at_every_length(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append("sft", 0, "begin", {"total": 9})
    one = path.stat().st_size
    log.append("sft", 4, "horizon", {"note": "é"})
    whole = path.read_bytes()
    for size in range(one, len(whole) - 1):
        path.write_bytes(whole[:size])
        torn = EventLog(path)
        assert [event.step for event in torn.events()] == [0]
        torn.append("sft", 6, "horizon", {})
        assert [event.step for event in EventLog(path).events()] == [0, 6]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"stage": "sft", "step": 0, "kind": "begin", "data": {}}\n{"sta\n{}\n')
    with pytest.raises(RunError, match=r"events.jsonl, line 2: not a JSON line"):
        EventLog(path)
    path.write_text('{"stage": "sft"}\n')
    with pytest.raises(RunError, match="line 1: an event without 'step'"):
        EventLog(path)
