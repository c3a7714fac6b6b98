import pytest
import torch

from sobre.models.step import StepInput, StepOutput
from sobre.rl.config import RLConfig
from sobre.rl.mismatch import Mismatch, differing, replays
from sobre.rl.objectives import Streams
from sobre.train.batch import Batch

ENGINE_LNA = torch.tensor([[[0, 1], [2, 3], [1, 3]], [[0, 1], [0, 2], [2, 3]]])


def batch(routes_LNA: torch.Tensor | None = None) -> Batch:
    step = StepInput(torch.tensor([1, 2, 3]), lengths=(3,))
    return Batch(step, torch.tensor([2, 3, 4]), torch.ones(3), routes_LNA, {"engine_routes_LNA": ENGINE_LNA})


def output(routes_LNA: torch.Tensor) -> StepOutput:
    return StepOutput(torch.zeros(3, 1), () if routes_LNA is None else tuple(routes_LNA), 8, torch.zeros(()))


def streams(behaviour: list[float]) -> Streams:
    return Streams(torch.tensor(behaviour), torch.zeros(len(behaviour)), torch.ones(len(behaviour)))


def test_the_order_of_experts_means_nothing_and_any_layer_counts() -> None:
    swapped = ENGINE_LNA.flip(-1).clone()
    assert differing(swapped, ENGINE_LNA).tolist() == [False, False, False]
    swapped[1, 2] = torch.tensor([0, 3])
    assert differing(swapped, ENGINE_LNA).tolist() == [False, False, True]


def test_mean_maximum_and_share_add_up_over_microbatches() -> None:
    other_LNA = ENGINE_LNA.clone()
    other_LNA[0, 0] = torch.tensor([0, 2])
    seen = Mismatch()
    seen.see(torch.tensor([-1.0, -1.0]), streams([-1.0, -1.3]), output(other_LNA), batch())
    seen.see(torch.tensor([-2.0, -2.0]), streams([-1.9, -2.0]), output(ENGINE_LNA), batch())
    assert seen.metrics() == pytest.approx({"logp_gap_mean": 0.1, "logp_gap_max": 0.3, "routes_differ": 1 / 6})


def test_under_replay_and_off_policy_there_is_nothing_to_compare() -> None:
    seen = Mismatch()
    seen.see(torch.tensor([-1.0]), streams([-1.0]), output(ENGINE_LNA), batch(ENGINE_LNA))
    assert seen.route_share is None
    off = Mismatch(active=False)
    off.see(torch.tensor([-1.0]), streams([-3.0]), output(ENGINE_LNA), batch())
    assert off.metrics() == {}


def test_auto_replay_starts_above_one_percent_and_stays() -> None:
    cfg = RLConfig(replay_routes="auto")
    assert not replays(cfg, False, None)
    assert not replays(cfg, False, 0.01)
    assert replays(cfg, False, 0.011)
    assert replays(cfg, True, 0.0)
    assert replays(RLConfig(replay_routes="on"), False, 0.0)
    assert not replays(RLConfig(replay_routes="off"), True, 1.0)
