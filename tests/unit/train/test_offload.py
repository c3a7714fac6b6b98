"""Sampler and trainer share one device: when they take turns, and that nothing is lost by it."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sobre.app import room
from sobre.config.recipe import Recipe
from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.errors import EngineError
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.plan import card
from sobre.rl.config import RLConfig
from sobre.runtime.events import EventLog
from sobre.runtime.processes import Processes
from sobre.train.batch import from_rows
from sobre.train.config import StageConfig
from sobre.train.loop import Feed, Stage, _fed
from sobre.train.losses import next_token
from sobre.train.step import train_step


def session(kind: str, folder: Path) -> SimpleNamespace:
    said: list[str] = []
    folder.mkdir(exist_ok=True)
    return SimpleNamespace(
        device=torch.device(kind),
        console=SimpleNamespace(say=said.append, said=said),
        recipe=Recipe(),
        processes=Processes(),
        events=EventLog(folder / "events.jsonl"),
    )


def settled(here: SimpleNamespace, model: Decoder, cfg: RLConfig | StageConfig) -> tuple[bool, bool]:
    engine = Engine(model, EngineConfig(max_batch=2)) if isinstance(cfg, RLConfig) else None
    return room.settle(here, "rl", model, cfg, longest=64, engine=engine)


def planned(here: SimpleNamespace, model: Decoder, cfg: RLConfig | StageConfig, **how: bool) -> float:
    engine = Engine(model, EngineConfig(max_batch=2)) if isinstance(cfg, RLConfig) else None
    return sum(card.parts(room.load_of(here, model, cfg, longest=64, engine=engine), **how).values())


@pytest.mark.parametrize(
    ("kind", "offload", "memory", "taken"),
    [
        ("cuda", "auto", 1.1, False),
        ("cuda", "auto", 0.99, True),
        ("cuda", "on", 1.1, True),
        ("cuda", "off", 0.99, False),
        ("cpu", "on", 0.99, False),
    ],
)
def test_they_take_turns_when_the_plan_exceeds_the_memory(
    monkeypatch, tmp_path, nano_config, kind, offload, memory, taken
):
    here, model, cfg = session(kind, tmp_path), Decoder(nano_config), RLConfig(offload=offload, recompute=False)
    whole = planned(here, model, cfg, recompute=False, offload=False)
    monkeypatch.setattr(room, "memory_of", lambda device: int(memory * whole))
    assert settled(here, model, cfg) == (False, taken)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_layers_are_computed_again_where_nothing_else_is_room_enough(monkeypatch, tmp_path, nano_config, kind):
    here, model = session(kind, tmp_path), Decoder(nano_config)
    cfg = RLConfig(micro_tokens=2_000_000)
    turns = planned(here, model, cfg, recompute=False, offload=kind == "cuda")
    monkeypatch.setattr(room, "memory_of", lambda device: int(0.9 * turns))
    again, _ = settled(here, model, cfg)
    assert again
    assert "computed again" in here.console.said[0]
    refused = session(kind, tmp_path / "refused")
    assert settled(refused, model, replace(cfg, recompute=False))[0] is False
    assert "may " in refused.console.said[0]  # it is said that the device may not hold it


def test_what_was_settled_holds_for_a_resumed_run_whatever_the_memory_is_then(monkeypatch, tmp_path, nano_config):
    here, model, cfg = session("cpu", tmp_path), Decoder(nano_config), StageConfig(micro_tokens=500_000)
    whole = planned(here, model, cfg, recompute=False, offload=False)
    monkeypatch.setattr(room, "memory_of", lambda device: int(0.9 * whole))
    assert settled(here, model, cfg) == (True, False)
    (event,) = here.events.events(kind="memory")
    assert (event.stage, event.step, event.data["recompute"]) == ("rl", 0, True)
    monkeypatch.setattr(room, "memory_of", lambda device: int(9 * whole))
    again = session("cpu", tmp_path)
    assert settled(again, model, cfg) == (True, False)
    assert settled(session("cpu", tmp_path / "anew"), model, cfg) == (False, False)
    fixed = session("cpu", tmp_path / "fixed")
    assert settled(fixed, model, replace(cfg, recompute=True)) == (True, False)
    assert not fixed.events.events()


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
