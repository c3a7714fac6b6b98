"""The RL benchmark: our step is a real step; against TRL where that is installed."""

from dataclasses import replace

import jsonschema
import pytest
import torch

from sobre.bench import ours, rl
from sobre.bench.config import RLBench
from sobre.errors import ConfigError
from sobre.schemas import schema


@pytest.fixture
def tiny(nano_config):
    return RLBench(
        model=nano_config, prompts=2, group_size=3, prompt=4, new=5, rounds=1, warmup=1, dtype="float32", lr=1e-2,
        peer_dtypes=("float32",),
    )  # fmt: skip


def test_a_step_samples_anew_learns_and_tells_the_engine(tiny):
    side = rl.Ours(tiny, ours.build(tiny.model, 0), rl.random_prompts(tiny))
    first = side.roll_out()
    before = [parameter.clone() for parameter in side.model.parameters()]
    side()
    assert side.engine.weight_version == 1
    assert any(not torch.equal(a, b) for a, b in zip(before, side.model.parameters(), strict=True))
    second = side.roll_out()
    assert [g.rollouts[0].response_ids for g in first] != [g.rollouts[0].response_ids for g in second]
    assert [len(answer.response_ids) for group in second for answer in group.rollouts] == [5] * 6


def test_the_engine_and_the_trainer_agree_on_what_was_sampled(tiny):
    side = rl.Ours(tiny, ours.build(tiny.model, 0), rl.random_prompts(tiny))
    side()
    assert side.mismatch.n_tokens == 2 * 3 * 5
    assert side.mismatch.largest < 1e-5


def test_the_reward_differs_within_a_group():
    assert rl.reward_of([2, 4, 1, 3]) == 0.5
    assert rl.reward_of([2, 4]) == 1.0


def test_without_trl_it_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    with pytest.raises(ConfigError, match="pip install trl"):
        rl.bench(tiny, lambda line: None)


@pytest.mark.slow
def test_a_whole_result_follows_the_schema(tiny):
    pytest.importorskip("trl")
    document = rl.bench(tiny, lambda line: None).document()
    jsonschema.validate(document, schema("bench"))
    assert len(document["rounds"]) == 1
    assert document["ratios"][0]["target"] == rl.TARGET


@pytest.mark.slow
def test_another_model_on_their_side_is_noticed(tiny, tmp_path, monkeypatch):
    pytest.importorskip("trl")
    from sobre.bench import trl_peer
    from sobre.errors import RunError
    from sobre.models.checkpoint import save_model

    save_model(ours.build(tiny.model, 0), tmp_path / "a")
    save_model(ours.build(tiny.model, 1), tmp_path / "b")
    honest = trl_peer.make_trainer
    monkeypatch.setattr(trl_peer, "make_trainer", lambda cfg, folder, *a, **k: honest(cfg, tmp_path / "b", *a, **k))
    with pytest.raises(RunError, match="log-probability"):
        rl.compare(replace(tiny, rounds=1), tmp_path / "a", rl.random_prompts(tiny))
