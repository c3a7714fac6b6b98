"""Which tokens the model in training sends elsewhere than the sampler did."""

import torch

from sobre.models.step import StepInput
from sobre.train.batch import Batch
from sobre.train.routes import differing, is_compared, rerouted

ENGINE_LNA = torch.tensor([[[0, 1], [2, 3], [1, 3]], [[0, 1], [0, 2], [2, 3]]])


def batch(routes_LNA: torch.Tensor | None = None, *, kept: bool = True) -> Batch:
    step = StepInput(torch.tensor([1, 2, 3]), lengths=(3,))
    streams = {"engine_routes_LNA": ENGINE_LNA} if kept else {}
    return Batch(step, torch.tensor([2, 3, 4]), torch.ones(3), routes_LNA, streams)


def test_the_order_of_experts_means_nothing_and_any_layer_counts() -> None:
    swapped = ENGINE_LNA.flip(-1).clone()
    assert differing(swapped, ENGINE_LNA).tolist() == [False, False, False]
    swapped[1, 2] = torch.tensor([0, 3])
    assert differing(swapped, ENGINE_LNA).tolist() == [False, False, True]


def test_the_layers_of_a_stage_are_compared_with_the_same_of_the_sampler() -> None:
    swapped = ENGINE_LNA.clone()
    swapped[1, 2] = torch.tensor([0, 3])
    second = rerouted([swapped[1]], batch(), 1)
    assert second is not None
    assert second.tolist() == [False, False, True]
    first = rerouted([swapped[0]], batch(), 0)
    assert first is not None
    assert not first.any()


def test_under_replay_in_dense_models_and_without_routes_of_the_sampler_there_is_nothing_to_compare() -> None:
    assert is_compared(batch())
    assert not is_compared(batch(ENGINE_LNA))
    assert rerouted(ENGINE_LNA.unbind(), batch(ENGINE_LNA)) is None
    assert rerouted(ENGINE_LNA.unbind(), batch(kept=False)) is None
    assert rerouted([], batch()) is None
