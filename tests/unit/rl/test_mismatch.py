import pytest
import torch

from sobre.rl.config import RLConfig
from sobre.rl.mismatch import Mismatch, replays, total
from sobre.rl.objectives import Streams


def streams(behaviour: list[float]) -> Streams:
    return Streams(torch.tensor(behaviour), torch.zeros(len(behaviour)), torch.ones(len(behaviour)))


def test_mean_and_maximum_add_up_over_microbatches_and_processes() -> None:
    seen, nothing = Mismatch(route_share=0.25), Mismatch(route_share=0.25)  # one has no end of the pipeline
    seen.see(torch.tensor([-1.0, -1.0]), streams([-1.0, -1.3]))
    seen.see(torch.tensor([-2.0, -2.0]), streams([-1.9, -2.0]))
    expected = {"logp_gap_mean": 0.1, "logp_gap_max": 0.3, "routes_differ": 0.25}
    assert seen.metrics() == pytest.approx(expected)
    assert total([nothing, seen.settled()]).metrics() == pytest.approx(expected)


def test_off_policy_there_is_nothing_to_compare() -> None:
    off = Mismatch(active=False)
    off.see(torch.tensor([-1.0]), streams([-3.0]))
    assert off.metrics() == {}


def test_auto_replay_starts_above_one_percent_and_stays() -> None:
    cfg = RLConfig(replay_routes="auto")
    assert not replays(cfg, False, None)
    assert not replays(cfg, False, 0.01)
    assert replays(cfg, False, 0.011)
    assert replays(cfg, True, 0.0)
    assert replays(RLConfig(replay_routes="on"), False, 0.0)
    assert not replays(RLConfig(replay_routes="off"), True, 1.0)
