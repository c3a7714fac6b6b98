"""What a run says of its health: once when it changes, and numbers for the log always."""

import json

import torch

from sobre.train.health import WINDOW, Health


def test_an_expert_is_dead_after_a_window_without_a_token_and_alive_with_the_next() -> None:
    health = Health()
    load_LE = torch.tensor([[4, 4, 0], [3, 3, 3]])
    found = [health.see(load_LE, step) for step in range(1, WINDOW + 1)]
    assert [line["dead_experts"] for line in found] == [0] * (WINDOW - 1) + [1]
    assert found[-1]["max_violation"] == 0.5
    assert health.news() == [f"experts without a token in {WINDOW} steps: 2 of routing layer 0"]
    assert health.news() == []
    assert health.see(torch.tensor([[4, 4, 1], [3, 3, 3]]), WINDOW + 1)["dead_experts"] == 0
    assert health.news() == ["no expert is dead any more"]


def test_a_resumed_run_counts_on() -> None:
    load_LE = torch.tensor([[4, 0]])
    before, after = Health(), Health()
    for step in range(WINDOW - 1):
        before.see(load_LE, step)
    after.restore(json.loads(json.dumps(before.state())))
    assert after.see(load_LE, WINDOW)["dead_experts"] == 1


def test_loads_are_logged_every_tenth_step() -> None:
    health = Health()
    logged = [step for step in range(1, 31) if "load_LE" in health.see(torch.ones(1, 2), step)]
    assert logged == [1, 11, 21]


def test_a_process_that_is_slower_than_the_others_is_named_once() -> None:
    health = Health()
    assert health.compare([1.0, 1.05, 0.95, 1.1])["slowest_process"] == 3
    assert health.news() == []
    assert health.compare([1.0, 2.0, 1.0, 1.0]) == {"slowest_process": 1, "slowest_ratio": 2.0}
    assert health.news() == [], "once may be chance"
    health.compare([1.0, 2.0, 1.0, 1.0])
    health.compare([1.0, 2.0, 1.0, 1.0])
    assert health.news() == ["process 1 holds the others up: its part takes 2.0 times as long as theirs"]
    for _ in range(2):
        health.compare([1.0, 1.0, 1.0, 1.0])
    assert health.news() == ["no process is slow any more"]


def test_one_process_is_compared_with_nobody() -> None:
    assert Health().compare([1.0]) == {}


def test_biases_that_outweigh_every_score_are_said_once_and_when_they_are_back() -> None:
    health = Health()
    assert health.drifted(0.4) == {"bias_drift": 0.4}
    assert health.news() == []
    health.drifted(1.25)
    health.drifted(1.5)
    assert health.news() == ["the biases of a router are 1.25 apart: they outweigh its scores, which are below 1"]
    health.drifted(0.5)
    assert health.news() == ["router biases are less than 1 apart again"]


def test_one_line_says_how_things_are_and_is_silent_about_what_is_not_there() -> None:
    found = {"slowest_process": 1, "slowest_ratio": 1.25, "max_violation": 0.5, "dead_experts": 2, "load_LE": [[1]]}
    found |= {"bias_drift": 0.125, "mtp_acceptance": 0.4321}
    assert Health.line(found) == (
        "process 1 takes longest (1.25 times the others' median), max violation 0.50, dead experts 2,"
        " bias drift 0.125, MTP right 43.2%"
    )
    assert Health.line({"mtp_acceptance": 0.5}) == "MTP right 50.0%"
    assert Health.line({}) == ""
