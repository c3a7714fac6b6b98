"""The source with a real model, engine and training step: the two agree, and a restored state goes on alike."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from sobre.app.references import References
from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.errors import CheckpointError, ConfigError, RunError
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.rl import rollout
from sobre.rl.config import CurriculumConfig, GRPOConfig, PublishedConfig, RLConfig
from sobre.rl.source import RolloutSource
from sobre.runtime.processes import Processes
from sobre.tasks.config import TasksConfig
from sobre.tasks.format import Reward
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.batch import Batch
from sobre.train.step import StepInfo, train_step

TASKS = TasksConfig(names=("sorting",), langs=("en",))
SMALL = {"n_prompts": 3, "group_size": 4, "max_tokens": 6, "curriculum": CurriculumConfig(difficulty=(1, 1))}


@pytest.fixture(autouse=True)
def _reward_small_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained model solves nothing; this reward tells its answers apart."""

    def reward(problem, text: str, finished: bool, **_weights: float) -> Reward:
        return Reward(0.0, 0.0, sum(letter.islower() for letter in text) / 6)

    monkeypatch.setattr(rollout, "reward", reward)


@pytest.fixture
def build(nano_config: ModelConfig, tokenizer: Tokenizer):
    def build(cfg: RLConfig, seed: int = 0) -> tuple[RolloutSource, Optimizer]:
        ffn = replace(nano_config.ffn, balance_alpha=0.0)  # all gradients come from the policy loss
        model = Decoder(replace(nano_config, ffn=ffn, vocab_size=tokenizer.vocab_size, max_len=160))
        model.init_weights(seed)
        reference = Decoder(model.cfg) if cfg.algorithm.kl else None
        if reference is not None:
            reference.load_state_dict(model.state_dict())
        sizes = EngineConfig(max_batch=8, return_routes=True, return_kept=cfg.is_filtered)
        engine = Engine(model, sizes, run_seed=7)
        source = RolloutSource(
            engine, model, tokenizer, cfg, TASKS, seed=7, forward_flops=lambda batch: 1.0, reference=reference
        )
        return source, Optimizer(
            dict(model.named_parameters()), roles(dict(model.named_parameters())), OptimConfig(warmup_steps=0)
        )

    return build


def step(source: RolloutSource, optimizer: Optimizer, number: int, lr: float = 1.0) -> tuple[StepInfo, dict]:
    feed = source.feed(number)
    info = train_step(source.model, optimizer, feed.batches, source.loss_fn, lr_scale=lr, clip=1.0, rebalance=False)
    return info, {**feed.metrics, **source.updated(number, info)}


def test_engine_and_trainer_give_the_same_log_probabilities(build) -> None:
    source, optimizer = build(RLConfig(temperature=0.7, micro_tokens=200, **SMALL))
    info, metrics = step(source, optimizer, 0)
    assert metrics["logp_gap_max"] <= 1e-5
    assert metrics["routes_differ"] == 0
    assert info.stats["ratio"] == pytest.approx(1, abs=1e-5)
    assert info.n_trained == sum(group.n_tokens for group in source._last[2].groups)
    assert metrics["replay"] is False


@pytest.mark.parametrize("cut", [{"top_p": 0.5}, {"top_k": 5, "temperature": 0.7}])
def test_under_top_p_and_top_k_the_trainer_chooses_from_what_the_sampler_chose_from(build, cut) -> None:
    cfg = RLConfig(algorithm=GRPOConfig(kl=0.1), n_minibatches=2, max_correction=2.0, **SMALL, **cut)
    source, optimizer = build(cfg)
    (batch,) = source.feed(0).batches
    trained = batch.weights_N > 0
    n_kept_N = torch.tensor([row.bit_count() for row in map(_number, batch.streams["kept_NB"].tolist())])
    assert n_kept_N[trained].min() >= 1
    assert n_kept_N[trained].max() < source.tokenizer.vocab_size / 2
    assert not n_kept_N[~trained].any()
    source, optimizer = build(cfg)
    info, metrics = step(source, optimizer, 0, lr=5.0)
    assert metrics["logp_gap_max"] <= 1e-5
    assert info.stats["kl_reference"] == pytest.approx(0, abs=1e-5)  # the reference chooses from the same words
    again, _ = build(cfg)
    again.restore(json.loads(json.dumps(source.state())))
    assert_close(again.feed(1).batches[0].streams["kept_NB"], source.feed(1).batches[0].streams["kept_NB"])


def _number(row: list[int]) -> int:
    return int.from_bytes(bytes(row), "little")


def test_a_step_makes_likelier_what_was_rewarded(build) -> None:
    source, optimizer = build(RLConfig(**SMALL))
    batches = source.feed(0).batches
    before = gain(source, batches)
    embedding_VD = source.model.embed.weight.detach().clone()
    train_step(source.model, optimizer, batches, source.loss_fn, lr_scale=0.1, clip=1.0, rebalance=False)
    assert gain(source, batches) > before + 0.1
    assert not torch.equal(source.model.embed.weight, embedding_VD)


@torch.no_grad()
def gain(source: RolloutSource, batches: Sequence[Batch]) -> float:
    """Sum of advantage * log p over the answers: what the policy gradient climbs."""
    total = 0.0
    for batch in batches:
        logits_NV = source.model.logits(source.model(batch.step).hidden_ND).log_softmax(-1)
        logp_N = logits_NV.gather(1, batch.targets_N[:, None]).squeeze(1)
        total += float((logp_N * batch.streams["advantage"] * batch.weights_N).sum())
    return total


def test_a_step_without_any_difference_leaves_the_weights_alone(build, monkeypatch) -> None:
    monkeypatch.setattr(rollout, "reward", lambda *_, **__: Reward(0.0, 0.0, 0.0))
    source, _ = build(RLConfig(replay_routes="on", **SMALL))
    feed = source.feed(0)
    assert not feed.batches
    assert feed.metrics["wasted_share"] == 1
    assert source.pass_rates == {"sorting/1": pytest.approx(0.5 * 0.8**6)}


def test_a_run_that_cannot_learn_stops_and_says_why(build, monkeypatch) -> None:
    monkeypatch.setattr(rollout, "reward", lambda *_, **__: Reward(0.0, 0.0, 0.0))
    source, _ = build(RLConfig(give_up_after=3, **SMALL))
    source.feed(0)
    source.feed(1)
    again, _ = build(RLConfig(give_up_after=3, **SMALL))
    again.restore(json.loads(json.dumps(source.state())))
    with pytest.raises(RunError, match=r"in 3 steps no group(?s:.*)0% right(?s:.*)sorting/1 0\.\d(?s:.*)cold start"):
        again.feed(2)
    patient, _ = build(RLConfig(give_up_after=0, **SMALL))
    patient.barren = 1000
    assert not patient.feed(0).batches


def test_one_group_that_tells_its_answers_apart_is_enough_to_go_on(build) -> None:
    source, _ = build(RLConfig(give_up_after=2, **SMALL))
    source.barren = 1
    source.feed(0)
    assert source.barren == 0


def test_a_restored_state_gives_the_same_steps(build) -> None:
    cfg = RLConfig(n_minibatches=2, n_epochs=2, **SMALL)
    source, optimizer = build(cfg)
    step(source, optimizer, 0)
    state = json.loads(json.dumps(source.state()))
    weights = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}
    moments = {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}
    assert len(state["pending"]) == 3
    expected = [step(source, optimizer, i)[0] for i in range(1, 6)]

    again, other = build(cfg, seed=1)
    again.model.load_state_dict(weights)
    other.load_state_dict(moments)
    again.restore(state)
    found = [step(again, other, i)[0] for i in range(1, 6)]
    assert [(a.loss, a.grad_norm, a.stats) for a in found] == [(b.loss, b.grad_norm, b.stats) for b in expected]
    for name, tensor in source.model.state_dict().items():
        assert_close(again.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_under_correction_later_updates_know_the_trainer_from_before_the_first(build) -> None:
    cfg = RLConfig(n_minibatches=2, max_correction=2.0, **SMALL)
    source, optimizer = build(cfg)
    info, _ = step(source, optimizer, 0, lr=5.0)
    assert info.stats["correction"] == pytest.approx(1, abs=1e-5)
    (part,) = source.pending
    assert all(sample.old == pytest.approx(sample.logprobs, abs=1e-5) for sample in part)
    again, _ = build(cfg)
    again.restore(json.loads(json.dumps(source.state())))
    assert [(s.old, s.scale) for s in again.pending[0]] == [(s.old, s.scale) for s in part]
    info, _ = step(source, optimizer, 1, lr=0.0)
    assert info.stats["ratio"] != pytest.approx(1, abs=1e-3)  # the first update moved the policy
    assert info.stats["correction"] == pytest.approx(1, abs=1e-5)  # what the engine sampled has not moved


def test_only_the_first_step_on_new_rollouts_measures_the_mismatch(build) -> None:
    source, optimizer = build(RLConfig(n_minibatches=2, **SMALL))
    first, second, third = (step(source, optimizer, i)[1] for i in range(3))
    assert "logp_gap_max" in first
    assert "logp_gap_max" not in second
    assert "reward" not in second
    assert third["logp_gap_max"] <= 1e-5


def test_the_dry_run_asks_for_the_same_rollouts_once(build) -> None:
    source, _ = build(RLConfig(**SMALL))
    before = source.state()
    first = source.feed(0)
    source.restore(before)
    computed = source.engine.stats.requests
    again = source.feed(0)
    assert source.engine.stats.requests == computed
    assert [b.targets_N.tolist() for b in first.batches] == [b.targets_N.tolist() for b in again.batches]


def test_replay_trains_with_the_experts_of_the_engine_and_still_measures(build) -> None:
    source, optimizer = build(RLConfig(replay_routes="on", **SMALL))
    feed = source.feed(0)
    batch = feed.batches[0]
    assert batch.routes_LNA is not None
    assert_close(source.model(batch.step, routes_LNA=batch.routes_LNA).routes_LNA, batch.routes_LNA)
    assert source.mismatch.metrics()["routes_differ"] == 0
    assert feed.metrics["replay"] is True
    assert feed.flops >= 1


def test_the_published_form_reads_the_reference(build) -> None:
    cfg = RLConfig(algorithm=PublishedConfig(kl=0.1), **SMALL)
    source, optimizer = build(cfg)
    info, _ = step(source, optimizer, 0, lr=0.0)
    assert info.stats["kl_reference"] == pytest.approx(0, abs=1e-6)
    step(source, optimizer, 1, lr=5.0)
    info, _ = step(source, optimizer, 2)
    assert info.stats["kl_reference"] > 1e-6


def test_bf16_leaves_only_rounding_between_engine_and_trainer(build) -> None:
    source, optimizer = build(RLConfig(algorithm=GRPOConfig(), **SMALL))
    source.model.dtype = torch.bfloat16
    source.engine = Engine(source.model, EngineConfig(max_batch=8, return_routes=True), run_seed=7)
    _, metrics = step(source, optimizer, 0)
    assert metrics["logp_gap_mean"] <= 0.02
    assert metrics["routes_differ"] < 0.2


def test_the_reference_becomes_the_present_model_every_n_steps_and_outlives_a_kill(build, tmp_path) -> None:
    cfg = RLConfig(algorithm=PublishedConfig(kl=0.1), reference_every=2, **SMALL)
    source, optimizer = build(cfg)
    source.references = References(tmp_path, Processes())
    start = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}

    def is_at(model, weights) -> bool:
        return all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())

    def learn(number: int) -> float:
        feed = source.feed(number)
        info = train_step(
            source.model, optimizer, feed.batches, source.loss_fn, lr_scale=5.0, clip=1.0, rebalance=False
        )
        source.updated(number + 1, info)
        return info.stats["kl_reference"]

    assert learn(0) == pytest.approx(0, abs=1e-6)
    assert is_at(source.reference, start)
    assert learn(1) > 1e-6  # to the model of the start
    second = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}
    assert is_at(source.reference, second)
    assert learn(2) == pytest.approx(0, abs=1e-6)  # to the present one

    again, _ = build(cfg)
    again.references = References(tmp_path, Processes())
    again.restore(json.loads(json.dumps(source.state())))
    assert is_at(again.reference, second)
    (tmp_path / "step-00000003").mkdir()
    (tmp_path / "step-00000003" / "meta.json").write_text(json.dumps({"source": source.state()}))
    learn(3)
    assert sorted(path.name for path in tmp_path.glob("reference-*")) == [
        "reference-00000002.safetensors",  # a saved state names it
        "reference-00000004.safetensors",
    ]
    (tmp_path / "step-00000003" / "meta.json").write_text(json.dumps({"source": source.state()}))
    learn(4)
    learn(5)
    assert not (tmp_path / "reference-00000002.safetensors").exists()
    with pytest.raises(CheckpointError, match="reference-00000002"):
        again.references.fetch(2)


def test_a_reset_without_a_kl_is_refused() -> None:
    with pytest.raises(ConfigError, match="reference_every=2 needs a KL"):
        RLConfig(reference_every=2)
