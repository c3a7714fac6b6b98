"""Schedules played out wait as long as their closed forms say, do all the work once and break no dependency."""

from itertools import accumulate

import pytest

from sobre.errors import ConfigError
from sobre.plan.layout import Layout, in_flight
from sobre.plan.schedule import Durations, bubble, idle, order, simulate

CASES = [
    ("1f1b", 4, 8, 1), ("1f1b", 2, 2, 1), ("1f1b", 4, 2, 1), ("interleaved", 4, 8, 2),
    ("interleaved", 2, 6, 3), ("zb1p", 4, 8, 1),
    ("zb1p", 8, 16, 1), ("dualpipe", 4, 12, 1), ("dualpipe", 8, 20, 1), ("dualpipe", 16, 40, 1),
    ("dualpipev", 4, 10, 1),
]  # fmt: skip


def played(name, chips, micro, chunks, durations):
    per_chip = {"interleaved": chunks, "dualpipev": 2}.get(name, 1)
    return simulate(order(name, chips, micro, chunks), chips * per_chip, durations, per_chip), chips * per_chip


@pytest.mark.parametrize(("name", "chips", "micro", "chunks"), CASES)
def test_every_chip_waits_as_long_as_the_closed_form_says(name, chips, micro, chunks):
    durations = Durations(1.0, 1.0, 1.0)
    placed, _ = played(name, chips, micro, chunks, durations)
    waits = [idle(placed, chip) for chip in range(chips)]
    assert waits == pytest.approx([bubble(name, chips, durations, chunks)] * chips)


@pytest.mark.parametrize(("name", "chips", "micro", "chunks"), CASES)
def test_every_micro_batch_goes_through_every_stage_once_in_order(name, chips, micro, chunks):
    placed, stages = played(name, chips, micro, chunks, Durations())
    ends = {}
    for piece in placed:
        for kind in {"D": "BW"}.get(piece.work.kind, piece.work.kind):
            key = (kind, piece.work.micro, piece.work.stage, piece.work.direction)
            assert key not in ends
            ends[key] = piece.end
    streams = (
        [(m, 0) for m in range(micro)] if name != "dualpipe" else [(m, d) for m in range(micro // 2) for d in (0, 1)]
    )
    assert len(ends) == 3 * len(streams) * stages
    for m, direction in streams:
        forward = [ends["F", m, s, direction] for s in range(stages)]
        backward = [ends["B", m, s, direction] for s in range(stages)]
        assert forward == sorted(forward, reverse=bool(direction))
        assert backward == sorted(backward, reverse=not direction)
        assert all(b > f for f, b in zip(forward, backward, strict=True))


@pytest.mark.parametrize(("name", "chips", "micro", "chunks"), CASES)
def test_the_memory_of_a_schedule_is_what_its_fullest_chip_holds_when_played(name, chips, micro, chunks):
    placed, stages = played(name, chips, micro, chunks, Durations())
    most = 0.0
    for chip in range(chips):
        mine = [piece for piece in placed if piece.chip == chip and piece.work.kind != "W"]
        changes = sorted((p.start, 1) if p.work.kind == "F" else (p.end, -1) for p in mine)
        most = max(most, *accumulate(change for _, change in changes))
    chunked = Layout(pipeline=chips, schedule=name, chunks=chunks if name == "interleaved" else 1)
    assert in_flight(chunked, micro) == most * chips / stages


BY_HAND = [
    # forward 1, backward 2 of which 1 for the weights; 3 seconds for a micro-batch on each chip
    ("1f1b", 4, 8, 1, 8 * 3 + 9),  # 3 stages of 3 seconds are lost
    ("interleaved", 4, 8, 2, 8 * 3 + 4.5),  # half of that with stages half as long
    ("zb1p", 4, 8, 1, 8 * 3 + 3),  # weights fill two thirds of it
    ("dualpipe", 8, 20, 1, 20 * 3 + 6),  # 3 times (3 + 2 - 3)
    ("dualpipev", 4, 10, 1, 10 * 3 + 3),  # 3 times (3 + 2 - 3) with stages half as long
]


@pytest.mark.parametrize(("name", "chips", "micro", "chunks", "seconds"), BY_HAND)
def test_a_step_takes_as_long_as_by_hand(name, chips, micro, chunks, seconds):
    placed, _ = played(name, chips, micro, chunks, Durations(1.0, 1.0, 1.0))
    assert max(piece.end for piece in placed) == seconds


def test_two_chips_and_two_micro_batches_drawn_by_hand():
    """1F1B and ZB1P, each piece where it stands on squared paper: kind, micro-batch and start, one string a chip."""

    def drawn(name: str) -> list[str]:
        placed, _ = played(name, 2, 2, 1, Durations(1.0, 1.0, 1.0))
        rows = [sorted((p for p in placed if p.chip == chip), key=lambda p: p.start) for chip in range(2)]
        return [" ".join(f"{p.work.kind}{p.work.micro}@{p.start:g}" for p in row) for row in rows]

    assert drawn("1f1b") == ["F0@0 F1@1 D0@4 D1@7", "F0@1 D0@2 F1@4 D1@5"]
    assert drawn("zb1p") == ["F0@0 F1@1 B0@3 W0@4 B1@5 W1@6", "F0@1 B0@2 F1@3 B1@4 W0@5 W1@6"]


def test_deepseek_v3_s_bubbles_are_the_published_formulas():
    """PP 16 with F=1, B=2 of which W=1: 45, 15 and 14 units (arXiv 2412.19437, table 2)."""
    unit = Durations()
    assert [bubble(name, 16, unit) for name in ("1f1b", "zb1p", "dualpipe")] == [45.0, 15.0, 14.0]


@pytest.mark.parametrize(("name", "chips", "micro"), [("zb1p", 4, 3), ("interleaved", 4, 6), ("dualpipe", 3, 8),
                                                      ("dualpipe", 4, 6), ("dualpipev", 4, 6)])  # fmt: skip
def test_a_schedule_that_cannot_be_says_what_it_needs(name, chips, micro):
    with pytest.raises(ConfigError, match="needs"):
        order(name, chips, micro, 2)
