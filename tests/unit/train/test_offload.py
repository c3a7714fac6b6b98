"""Sampler and trainer share one device: when they take turns, and that nothing is lost by it."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from sobre.app import sharing
from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.errors import EngineError
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.rl.config import RLConfig
from sobre.train.batch import from_rows
from sobre.train.loop import Feed, Stage, _fed
from sobre.train.losses import next_token
from sobre.train.step import train_step


def session(kind: str) -> SimpleNamespace:
    return SimpleNamespace(device=torch.device(kind), console=SimpleNamespace(say=lambda line: None))


@pytest.mark.parametrize(
    ("kind", "offload", "room", "taken"),
    [
        ("cuda", "auto", 1.1, False),
        ("cuda", "auto", 0.9, True),
        ("cuda", "on", 1.1, True),
        ("cuda", "off", 0.9, False),
        ("cpu", "on", 0.9, False),
    ],
)
def test_they_take_turns_when_the_plan_exceeds_the_memory(monkeypatch, nano_config, kind, offload, room, taken):
    model, cfg = Decoder(nano_config), RLConfig(offload=offload)
    planned = sharing.planned_bytes(model, cfg, cache_bytes=1000)
    monkeypatch.setattr(sharing, "memory_of", lambda device: int(room * planned))
    assert sharing.offloads(session(kind), model, cfg, 1000) is taken
    assert sharing.planned_bytes(model, cfg, 2000) == planned + 1000


def test_a_feed_is_made_while_the_state_is_away_and_the_step_after_it_is_the_same(nano_config):
    batch, losses = from_rows(torch.arange(34).view(2, 17)), []
    for offloads in (False, True):
        model = Decoder(nano_config)
        model.init_weights(0)
        names = dict(model.named_parameters())
        optimizer = Optimizer(names, roles(names), OptimConfig())
        seen = []

        class Source:
            def feed(self, step):
                seen.append(all(p.grad is None for p in names.values()))  # noqa: B023
                return Feed([batch])

        moves = []
        optimizer.keep_on = lambda device, move=optimizer.keep_on: (moves.append(device.type), move(device))  # noqa: B023
        fields = dict.fromkeys((field.name for field in dataclasses.fields(Stage)), None)
        stage = Stage(**fields | {"model": model, "optimizer": optimizer, "source": Source(), "offloads": offloads})
        for step in range(3):
            feed = _fed(stage, step)
            info = train_step(model, optimizer, feed.batches, next_token, lr_scale=1.0, clip=1.0)
        losses.append(info.loss)
        assert moves == (["cpu", "cpu"] * 3 if offloads else [])
        assert seen[-1] is offloads
    assert losses[0] == losses[1]


def test_an_engine_that_rested_answers_as_before_and_gives_its_memory_back_in_between(nano_config):
    model = Decoder(nano_config).eval()
    model.init_weights(0)
    engine = Engine(model, EngineConfig(max_batch=2))
    requests = [Request(str(i), tuple(range(3, 23)), SamplingParams(max_tokens=8, seed=i)) for i in range(3)]
    first, held = engine.generate(requests), engine.cache_bytes
    engine.rest()
    assert engine.cache_bytes == 0
    assert [output.token_ids for output in engine.generate(requests)] == [output.token_ids for output in first]
    assert engine.cache_bytes == held
    engine.add(requests[0])
    with pytest.raises(EngineError, match="with work cannot rest; 0 run and 1 wait"):
        engine.rest()
