"""Learning from samplers apart, which here stand in this process: synchronous or stale, whatever Ray may do."""

import json
from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
import torch

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine, EngineStats
from sobre.engine.request import Output, Request
from sobre.errors import ConfigError
from sobre.models.adapt import sharing_copy
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.rl import rollout
from sobre.rl.config import CurriculumConfig, GRPOConfig, RLConfig, SamplersConfig
from sobre.rl.remote_engine import RemoteEngine
from sobre.rl.shared_engine import added
from sobre.rl.source import RolloutSource
from sobre.rl.worker import Weights, Worker, weights_of
from sobre.runtime.processes import Processes
from sobre.tasks.config import TasksConfig
from sobre.tasks.format import Reward
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.step import train_step

TASKS = TasksConfig(names=("sorting",), langs=("en",))
SIZES = EngineConfig(max_batch=8, return_routes=True, deterministic=True)
NONE = EngineStats(**{field.name: 0 for field in fields(EngineStats)})


class Here:
    """Two samplers in this process, which answer as soon as they are asked."""

    def __init__(self, model: Decoder) -> None:
        threads = torch.get_num_threads()
        self.workers = [Worker(sharing_copy(model), SIZES, run_seed=7, threads=threads) for _ in range(2)]
        self.weights: tuple[int, Weights] = (0, {})
        self.found: dict[str, tuple[Request, Output]] = {}
        self.begun: list[tuple[int, list[str]]] = []
        self.done: list[EngineStats] = []

    def push(self, version: int, weights: Weights) -> None:
        self.weights = version, {name: numbers.copy() for name, numbers in weights.items()}

    def begin(self, requests: Sequence[Request]) -> None:
        self.begun.append((self.weights[0], [request.id for request in requests]))
        for i, worker in enumerate(self.workers):
            mine = requests[i::2]
            outputs, stats = worker.generate(*self.weights, mine)
            self.found |= {each.id: (each, output) for each, output in zip(mine, outputs, strict=True)}
            self.done.append(stats)

    def finish(self, requests: Sequence[Request]) -> tuple[list[Output], EngineStats]:
        self.begin([request for request in requests if self.found.get(request.id, (None,))[0] != request])
        outputs = [self.found.pop(request.id)[1] for request in requests]
        done, self.done = self.done, []
        return outputs, added(NONE, done)

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def _reward_small_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained model solves nothing; this reward tells its answers apart."""
    monkeypatch.setattr(rollout, "reward", lambda _, text, __, **___: Reward(0.0, 0.0, sum(map(str.islower, text)) / 6))


@pytest.fixture
def build(nano_config: ModelConfig, tokenizer: Tokenizer):
    def build(samplers: SamplersConfig) -> tuple[RolloutSource, Optimizer]:
        ffn = replace(nano_config.ffn, balance_alpha=0.0)
        model = Decoder(replace(nano_config, ffn=ffn, vocab_size=tokenizer.vocab_size, max_len=160))
        model.init_weights(0)
        engine: Engine | RemoteEngine = Engine(model, SIZES, run_seed=7)
        if samplers.workers:
            engine = RemoteEngine(Here(model), Processes(), lambda: weights_of(model))
        cfg = RLConfig(
            algorithm=GRPOConfig(refill_rounds=1),
            n_prompts=3,
            group_size=4,
            max_tokens=6,
            curriculum=CurriculumConfig(difficulty=(1, 2)),
            samplers=samplers,
        )
        source = RolloutSource(engine, model, tokenizer, cfg, TASKS, seed=7, forward_flops=lambda batch: 1.0)
        names = dict(model.named_parameters())
        return source, Optimizer(names, roles(names), OptimConfig(warmup_steps=0))

    return build


def run(source: RolloutSource, optimizer: Optimizer, first: int, last: int) -> list[dict]:
    """Metrics of these steps, without what they cost."""
    found = []
    for number in range(first, last):
        feed = source.feed(number)
        info = train_step(
            source.model, optimizer, feed.batches, source.loss_fn, lr_scale=3.0, clip=1.0, rebalance=False
        )
        metrics = {**feed.metrics, **source.updated(number, info), "loss": info.loss, "norm": info.grad_norm}
        found.append({key: value for key, value in metrics.items() if "flops" not in key and key != "rollout_s"})
    return found


def test_synchronous_samplers_give_every_number_of_one_engine(build) -> None:
    one, other = build(SamplersConfig()), build(SamplersConfig(workers=2))
    alone, apart = run(*one, 0, 4), run(*other, 0, 4)
    costs = {"staleness": 0, "staleness_max": 0, "lost_answers": 0, "lost_s": 0}
    assert apart == [line | costs for line in alone]
    assert all(line["loss"] for line in alone)
    for name, tensor in one[0].model.state_dict().items():
        assert torch.equal(other[0].model.state_dict()[name], tensor), name


def test_stale_samplers_begin_the_next_sets_with_the_weights_before_the_update(build) -> None:
    source, optimizer = build(SamplersConfig(workers=2, staleness=2))
    lines = run(source, optimizer, 0, 5)
    assert [line["staleness_max"] for line in lines] == [0, 1, 2, 2, 2]
    assert [line["replay"] for line in lines] == [True] * 5
    assert ["logp_gap_max" in line for line in lines] == [True, False, False, False, False]
    pool = source.engine._pool
    whole = [(version, int(ids[0]) // 24) for version, ids in pool.begun if len(ids) == 12 and int(ids[0]) % 24 == 0]
    assert whole == [(0, 0), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)]  # (version, step)
    assert source.engine.stats.requests == sum(len(ids) for _, ids in pool.begun[:-2])


def test_a_learner_that_was_killed_asks_anew_for_what_was_under_way(build) -> None:
    source, optimizer = build(SamplersConfig(workers=2, staleness=1))
    run(source, optimizer, 0, 2)
    again, other = build(SamplersConfig(workers=2, staleness=1))
    again.model.load_state_dict(source.model.state_dict())
    again.restore(json.loads(json.dumps(source.state())))
    assert [line["staleness_max"] for line in run(again, other, 2, 4)] == [0, 1]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"samplers": {"staleness": 1}}, "needs samplers.workers or samplers.urls"),
        ({"samplers": {"workers": -1}}, "workers=-1 must be at least 0"),
        ({"samplers": {"workers": 1, "address": "my cluster"}}, "must be local, auto or HOST:PORT"),
        ({"samplers": {"workers": 1, "staleness": 1}, "n_minibatches": 2}, "n_minibatches=2 and n_epochs=1 must be 1"),
    ],
)
def test_samplers_that_cannot_be_are_refused(keys, said) -> None:
    with pytest.raises(ConfigError, match=said):
        RLConfig(**{**keys, "samplers": SamplersConfig(**keys["samplers"])})
