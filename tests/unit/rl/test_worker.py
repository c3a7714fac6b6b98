"""A sampler apart: it takes weights as bytes and by version, and answers as an engine over the learner's model does."""

from dataclasses import replace

import numpy as np
import torch

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.models.adapt import adapt, sharing_copy
from sobre.models.config import BLOCK, LoraConfig, ModelConfig
from sobre.models.decoder import Decoder
from sobre.rl.worker import Worker, take_up, weights_of

SIZES = EngineConfig(max_batch=4, return_routes=True)


def build(cfg: ModelConfig, seed: int) -> Decoder:
    model = Decoder(replace(cfg, max_len=64))
    model.init_weights(seed)
    return model


def requests(n: int = 5) -> list[Request]:
    return [Request(str(i), (3, 1, 4), SamplingParams(max_tokens=9, seed=i)) for i in range(n)]


def test_weights_arrive_as_they_left_in_any_dtype_and_from_memory_that_cannot_be_written(
    nano_config: ModelConfig,
) -> None:
    learner, other = build(nano_config, 1), build(nano_config, 2)
    for model in (learner, other):
        model.embed.weight.data = model.embed.weight.data.bfloat16()
    weights = weights_of(learner)
    for numbers in weights.values():
        numbers.flags.writeable = False
    take_up(other, weights)
    for name, tensor in learner.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_frozen_weights_do_not_travel(nano_config: ModelConfig) -> None:
    learner = build(nano_config, 1)
    whole = weights_of(learner)
    adapt(learner, LoraConfig(rank=2), seed=0)
    learned = weights_of(learner)
    assert {name for name in learned if "bias_E" not in name} == {
        name for name, parameter in learner.named_parameters() if parameter.requires_grad
    }
    assert {name for name in whole if "bias_E" in name} <= learned.keys()
    assert sum(n.nbytes for n in learned.values()) < sum(n.nbytes for n in whole.values()) / 2


def test_answers_are_those_of_an_engine_over_the_learners_model_at_each_version(nano_config: ModelConfig) -> None:
    learner = build(nano_config, 1)
    engine = Engine(learner, SIZES, run_seed=7)
    worker = Worker(sharing_copy(learner), SIZES, run_seed=7, threads=torch.get_num_threads())
    seen = []
    for version in (0, 5):
        outputs, stats = worker.generate(version, weights_of(learner), requests())
        expected = engine.generate(requests())
        for output, one in zip(outputs, expected, strict=True):
            assert (output.token_ids, output.logprobs) == (one.token_ids, one.logprobs)
            assert torch.equal(output.routes_LTA, one.routes_LTA)
            assert output.weight_version == version
        assert (stats.requests, stats.generated_tokens) == (5, sum(len(output.token_ids) for output in outputs))
        seen.append([output.logprobs for output in outputs])
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
        engine.weights_changed()
    assert not np.allclose(seen[0][0][0], seen[1][0][0])


def test_what_was_computed_is_found_again_as_long_as_the_version_is_the_same(nano_config: ModelConfig) -> None:
    learner = build(nano_config, 1)
    worker = Worker(sharing_copy(learner), SIZES, run_seed=7, threads=torch.get_num_threads())
    long = [Request("a", (5,) * (BLOCK + 1), SamplingParams(max_tokens=2))]
    found = [worker.generate(version, weights_of(learner), long)[1].found_tokens for version in (3, 3, 4)]
    assert found == [0, BLOCK, 0]
