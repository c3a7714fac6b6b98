"""Batches made one step ahead: the same ones, and a state that knows nothing of those that wait."""

import dataclasses

import numpy as np
import pytest
import torch

from sobre.data.chats import ChatLoader, ChatSamples
from sobre.data.loader import PackedLoader
from sobre.data.pairs import TokenPair
from sobre.errors import DataError
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.preference.config import DPOConfig
from sobre.preference.source import PairSource
from sobre.train import loop
from sobre.train.batch import Batch, from_samples
from sobre.train.config import StageConfig
from sobre.train.loop import Stage
from sobre.train.losses import next_token
from sobre.train.sources import LoaderSource, RowSource, SampleSource
from sobre.train.step import train_step

HERE = torch.device("cpu")
THERE = torch.device("meta")
"""Not where the batches are, so that `ready` has something to do."""


class Shards:
    """Tokens that count up."""

    folder, n_tokens = "text", 150

    def read(self, begin: int, end: int) -> np.ndarray:
        return np.arange(begin, end) % 61


def rows() -> LoaderSource:
    return RowSource(PackedLoader(Shards(), 16, seed=3), StageConfig(batch_tokens=64, micro_tokens=32))


def samples() -> LoaderSource:
    rng, lengths = np.random.default_rng(0), [5, 9, 3, 12, 7, 4, 8]
    ids, ends = rng.integers(0, 61, sum(lengths)), np.cumsum(lengths)
    chats = ChatSamples(ids, np.ones(len(ids), bool), ends, ("",) * len(lengths))
    assert chats.longest == 12
    return SampleSource(ChatLoader(chats, seed=4), StageConfig(batch_tokens=20, micro_tokens=12))


def pairs() -> LoaderSource:
    def chat(n: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return tuple(range(n)), (0, 0, *(1,) * (n - 2))

    found = [TokenPair(chat(n), chat(n + 2)) for n in (4, 7, 5, 6, 9)]
    return PairSource(
        found, [(-1.0, -2.0)] * len(found), DPOConfig(paths=("x",), batch_tokens=40, micro_tokens=24), seed=5
    )


SOURCES = {"rows": rows, "samples": samples, "pairs": pairs}


def same(one: Batch, other: Batch) -> bool:
    tensors = [
        [batch.step.tokens_N, batch.targets_N, batch.weights_N, *batch.streams.values()] for batch in (one, other)
    ]
    return one.step.lengths == other.step.lengths and all(map(torch.equal, *tensors))


def all_same(ours: list[Batch], theirs: list[Batch]) -> bool:
    return len(ours) == len(theirs) and all(map(same, ours, theirs))


@pytest.mark.parametrize("device", [HERE, THERE])
@pytest.mark.parametrize("name", SOURCES)
def test_batches_and_states_are_those_of_a_source_that_makes_nothing_ahead(name, device):
    ahead, plain = SOURCES[name](), SOURCES[name]()
    for step in range(9):  # into the third epoch of the smallest
        assert all_same(ahead.feed(step).batches, plain.feed(step).batches)
        assert ahead.state() == plain.state()
        ahead.prepare(step + 1, device)
        ahead.prepare(step + 1, device)  # what waits is not made twice
        assert ahead.state() == plain.state()


@pytest.mark.parametrize("name", SOURCES)
def test_a_run_killed_while_batches_wait_goes_on_with_them(name):
    killed, plain = SOURCES[name](), SOURCES[name]()
    for step in range(3):
        killed.feed(step), plain.feed(step)
        killed.prepare(step + 1, HERE)
    resumed = SOURCES[name]()
    resumed.restore(killed.state())
    killed.restore(killed.state())  # as after a rehearsal: what waits is forgotten, and made again
    expected = plain.feed(3).batches
    assert all_same(resumed.feed(3).batches, expected)
    assert all_same(killed.feed(3).batches, expected)


def test_what_cannot_be_made_is_said_when_its_step_comes():
    ids = np.arange(32)
    chats = ChatSamples(ids, np.ones(32, bool), np.array([4, 8, 32]), ("", "", "long.jsonl:3"))
    source = SampleSource(ChatLoader(chats, seed=1), StageConfig(batch_tokens=8, micro_tokens=8))
    done: list[str] = []
    with pytest.raises(DataError, match=r"long\.jsonl:3"):
        drain(source, done)
    assert done[-1] == "prepared"


def drain(source: LoaderSource, done: list[str]) -> None:
    for step in range(3):
        source.prepare(step, HERE)
        done.append("prepared")
        source.feed(step)
        done.append("given")


def test_a_batch_that_is_ready_counts_and_learns_the_same(nano_config):
    batch = from_samples([([1, 2, 3, 4, 5], [0, 0, 1, 1, 1]), ([6, 7, 8], [0, 1, 1])], fill_unit=4)
    streams = {"advantage": torch.arange(8.0)}
    batch = dataclasses.replace(batch, streams=streams)
    ready = batch.ready(THERE)
    assert same(ready, batch)
    for name in ("first", "second"):
        ours, theirs = getattr(ready, name), getattr(batch, name)
        assert ours.total == theirs.total
        assert torch.equal(ours.places, theirs.places)
        assert name in ready.__dict__  # found before it is asked for
    assert ready.n_tokens == batch.n_tokens
    assert batch.ready(HERE) is batch


def test_a_step_asks_for_the_next_batches_before_it_waits_for_its_own_numbers(nano_config, monkeypatch):
    model = Decoder(nano_config)
    model.init_weights(0)
    names = dict(model.named_parameters())
    optimizer = Optimizer(names, roles(names), OptimConfig())
    happened = []
    source = rows()
    prepare = source.prepare
    monkeypatch.setattr(
        source, "prepare", lambda step, device: (happened.append(("ahead", step)), prepare(step, device))
    )
    read = loop.train_step.__globals__["_read"]
    monkeypatch.setitem(
        loop.train_step.__globals__, "_read", lambda sums: (happened.append(("waits", 0)), read(sums))[1]
    )
    fields = dict.fromkeys((field.name for field in dataclasses.fields(Stage)), None)
    changes = {"model": model, "optimizer": optimizer, "source": source, "loss_fn": next_token, "clip": 1.0}
    stage = Stage(**fields | changes | {"mtp_weight": 0.0, "rebalance": True, "offloads": False})
    plain = rows()
    for step in range(3):
        feed = loop._fed(stage, step)
        assert all_same(feed.batches, plain.feed(step).batches)
        loop._step(stage, feed, 1.0, step)
        assert source.state() == plain.state()
    assert happened == [("ahead", 1), ("waits", 0), ("ahead", 2), ("waits", 0), ("ahead", 3), ("waits", 0)]


def test_a_step_without_anything_else_to_do_is_the_same_step(nano_config):
    losses = []
    for extra in ({}, {"meanwhile": lambda: None}):
        model = Decoder(nano_config)
        model.init_weights(0)
        names = dict(model.named_parameters())
        optimizer = Optimizer(names, roles(names), OptimConfig())
        batches = rows().feed(0).batches
        losses.append(
            [train_step(model, optimizer, batches, next_token, lr_scale=1.0, clip=1.0, **extra).loss for _ in "ab"]
        )
    assert losses[0] == losses[1]
