"""Answers that go on after the update: the same tokens, each of its own weights, bounded, counted, kept by a kill."""

import json
import zlib
from dataclasses import replace

import pytest
from torch.testing import assert_close

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.errors import ConfigError
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.rl import rollout
from sobre.rl.config import (
    CurriculumConfig,
    DrGRPOConfig,
    GeneralConfig,
    GRPOConfig,
    RLConfig,
    SamplersConfig,
    StragglersConfig,
)
from sobre.rl.rollout import to_request
from sobre.rl.source import RolloutSource
from sobre.tasks.base import Problem
from sobre.tasks.config import TasksConfig
from sobre.tasks.format import Reward
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.step import train_step

SORTING = TasksConfig(names=("sorting",), langs=("en",))
QUESTIONS = GeneralConfig(files=("q.jsonl",), judge="sft", share=0.5)
STREAMING = StragglersConfig(groups=3, staleness=2)
sampling = rollout._sampling


@pytest.fixture(autouse=True)
def _short_and_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained model's answers earn what a hash of them says, and end at every sixth token of the vocabulary."""
    monkeypatch.setattr(
        rollout, "reward", lambda _, text, __, **___: Reward(0.0, 0.0, zlib.crc32(text.encode()) % 97 / 97)
    )
    monkeypatch.setattr(
        rollout, "_sampling", lambda *given: replace(sampling(*given), stop_ids=tuple(range(2, 300, 6)))
    )


@pytest.fixture
def build(nano_config: ModelConfig, tokenizer: Tokenizer):
    def build(seed: int = 0, tasks: TasksConfig = SORTING, **more: object) -> tuple[RolloutSource, Optimizer]:
        ffn = replace(nano_config.ffn, balance_alpha=0.0)
        model = Decoder(replace(nano_config, ffn=ffn, vocab_size=tokenizer.vocab_size, max_len=640))
        model.init_weights(seed)
        keys = {"n_prompts": 2, "group_size": 2, "max_tokens": 24, "curriculum": CurriculumConfig(difficulty=(1, 1))}
        cfg = RLConfig(**{**keys, "stragglers": STREAMING, "algorithm": DrGRPOConfig(), **more})
        sizes = EngineConfig(max_batch=16, return_routes=True, return_kept=cfg.is_filtered, deterministic=True)
        engine = Engine(model, sizes, run_seed=7)
        source = RolloutSource(engine, model, tokenizer, cfg, tasks, seed=7, forward_flops=lambda batch: 1.0)
        names = dict(model.named_parameters())
        return source, Optimizer(names, roles(names), OptimConfig(warmup_steps=0))

    return build


def run(source: RolloutSource, optimizer: Optimizer, first: int, last: int, lr: float = 3.0) -> list[dict]:
    """Metrics of these steps, without what they cost, and what was learned from."""
    found = []
    for number in range(first, last):
        feed = source.feed(number)
        assert feed.batches
        info = train_step(source.model, optimizer, feed.batches, source.loss_fn, lr_scale=lr, clip=1.0, rebalance=False)
        groups = source._last[2].groups
        metrics = {**feed.metrics, **source.updated(number, info), "loss": info.loss, "norm": info.grad_norm}
        kept = {key: value for key, value in metrics.items() if "flops" not in key and key != "rollout_s"}
        found.append({**kept, "learned": groups})
    return found


@pytest.mark.parametrize("more", [{}, {"top_k": 5}])
def test_under_the_same_weights_an_answer_that_went_on_is_that_of_one_request(build, more) -> None:
    source, optimizer = build(**more)
    lines = run(source, optimizer, 0, 4, lr=0.0)
    assert lines[0]["under_way"] > 0
    assert lines[1]["stale_tokens"] > 0
    asked = {}
    advance, seen = rollout.advance, []

    def watched(engine, groups, *given, **named):
        whole, left = advance(engine, groups, *given, **named)
        seen.extend(whole)
        return whole, left

    rollout.advance, again = watched, build(**more)
    try:
        run(*again, 0, 4, lr=0.0)
    finally:
        rollout.advance = advance
    went_on = [answer for group in seen for answer in group.answers if len(set(answer.versions)) > 1]
    assert went_on
    for answer in went_on:
        source.engine.weights_changed()
        (whole,) = source.engine.generate([answer.request])
        assert tuple(whole.token_ids) == answer.spoken.token_ids
        assert list(answer.spoken.logprobs) == whole.logprobs
        assert_close(answer.spoken.routes_LTA, whole.routes_LTA)
        if more:
            assert [ids.tolist() for ids in answer.spoken.kept] == [ids.tolist() for ids in whole.kept]
        asked[answer.request.id] = whole
    assert len(asked) == len(went_on)


def test_a_step_learns_from_the_first_whole_groups_and_none_is_lost_or_learned_twice(build) -> None:
    source, optimizer = build()
    learned: list[str] = []
    for number in range(6):
        (line,) = run(source, optimizer, number, number + 1)
        assert len(line["learned"]) >= 2
        assert line["staleness_max"] <= 2
        learned += [problem.prompt for problem in (group.problem for group in line["learned"])]
        left = [group.problem.prompt for group in source.under_way]
        assert not set(left) & set(learned)
        assert all(not group.is_whole for group in source.under_way)
        assert all(group.age(source.engine.weight_version) <= 2 for group in source.under_way)
        begun = len(learned) + len(left)
    assert len(set(learned)) == len(learned)
    assert begun >= 6 * 2


@pytest.mark.parametrize("staleness", [1, 2])
def test_the_bound_is_met_and_waited_for(build, staleness) -> None:
    source, optimizer = build(stragglers=StragglersConfig(groups=6, staleness=staleness), max_tokens=60)
    lines = run(source, optimizer, 0, 5)
    assert max(line["staleness_max"] for line in lines) == staleness
    assert [line["replay"] for line in lines] == [True] * 5
    assert "logp_gap_max" in lines[0]
    assert all("logp_gap_max" not in line for line in lines if line["staleness_max"])


def test_a_token_keeps_the_log_probability_with_which_it_was_sampled(build) -> None:
    source, optimizer = build()
    run(source, optimizer, 0, 1)
    before = {answer.request.id: answer for group in source.under_way for answer in group.answers if answer.versions}
    advance, after = rollout.advance, {}

    def watched(*given, **named):
        whole, left = advance(*given, **named)
        after.update({answer.request.id: answer for group in whole for answer in group.answers})
        return whole, left

    rollout.advance = watched
    try:
        run(source, optimizer, 1, 3)
    finally:
        rollout.advance = advance
    met = [(before[name], after[name]) for name in before if name in after and not before[name].is_whole]
    assert met
    for old, new in met:
        n = len(old.versions)
        assert new.spoken.logprobs[:n] == old.spoken.logprobs
        assert new.spoken.token_ids[:n] == old.spoken.token_ids
        assert new.versions[:n] == old.versions == (0,) * n
        assert min(new.versions[n:]) >= 1


def test_a_run_that_was_killed_goes_on_alike(build) -> None:
    source, optimizer = build(top_p=0.9)
    run(source, optimizer, 0, 2)
    assert source.under_way
    state = json.loads(json.dumps(source.state()))
    weights = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}
    moments = {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}
    expected = run(source, optimizer, 2, 5)
    again, other = build(seed=1, top_p=0.9)
    again.model.load_state_dict(weights)
    other.load_state_dict(moments)
    again.restore(state)
    found = run(again, other, 2, 5)
    drop = {"learned"}
    assert [{k: v for k, v in line.items() if k not in drop} for line in found] == [
        {k: v for k, v in line.items() if k not in drop} for line in expected
    ]


def test_the_dry_run_takes_nothing_from_what_is_under_way(build) -> None:
    source, _ = build()
    before = source.state()
    first = source.feed(0)
    left = source.under_way
    source.restore(before)
    assert not source.under_way
    again = source.feed(0)
    assert source.under_way == left
    assert [b.targets_N.tolist() for b in first.batches] == [b.targets_N.tolist() for b in again.batches]


def test_problems_are_drawn_again_whatever_a_task_keeps_of_them(build) -> None:
    mixed = TasksConfig(names=("dates", "knights", "formula"), langs=("en", "fr"))
    algorithm = GRPOConfig(refill_rounds=2)
    curriculum = CurriculumConfig(difficulty=(2, 3))
    source, optimizer = build(tasks=mixed, algorithm=algorithm, curriculum=curriculum, general=QUESTIONS)
    source.general = [Problem("q", "en", 1, f"why {i}?", "", f"q:{i}", {}) for i in range(5)]
    for number in range(3):
        run(source, optimizer, number, number + 1)
        again, _ = build(tasks=mixed, algorithm=algorithm, curriculum=curriculum, general=QUESTIONS)
        again.general = source.general
        again.restore(json.loads(json.dumps(source.state())))
        assert source.under_way
        assert [group.problem for group in again.under_way] == [group.problem for group in source.under_way]
        assert again._drawn_at == source._drawn_at


def test_problems_are_drawn_again_by_the_pass_rates_of_their_own_step(build) -> None:
    """By step 0's rates nearly all problems are dates, by those that the state knows later nearly all are knights."""
    mixed = TasksConfig(names=("dates", "knights"), langs=("en",))
    rates = {"dates": 0.5, "knights": 0.001}
    source, optimizer = build(tasks=mixed)
    source.pass_rates = {f"{task}/1": rate for task, rate in rates.items()}
    run(source, optimizer, 0, 1)
    assert {group.drawn.step for group in source.under_way} == {0}
    source.pass_rates = {"dates/1": 0.001, "knights/1": 0.5}
    again, _ = build(tasks=mixed)
    again.restore(json.loads(json.dumps(source.state())))
    assert [group.problem for group in again.under_way] == [group.problem for group in source.under_way]
    present = [source._draw(*group.drawn[:3])[group.drawn.place] for group in source.under_way]
    assert present != [group.problem for group in source.under_way], "the present rates would draw others"


def test_an_answer_that_was_not_begun_asks_for_the_whole(build, tokenizer) -> None:
    source, _ = build()
    request = to_request(tokenizer, source.cfg, 5, (1, 2, 3))
    partial = rollout.begun([Problem("sorting", "en", 1, "p", "1", "k", {})], [request], 0, 0)[0].answers[0]
    assert partial.rest == request
    nothing = source.engine.generate([partial.rest], lambda outputs: True)[0]
    assert (nothing.token_ids, nothing.finish_reason) == ([], "abort")
    assert partial.and_then(nothing, 0) == partial


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"tools": ("calculator",)}, "does not go with tools"),
        ({"n_minibatches": 2}, "does not go with n_minibatches=2"),
        ({"samplers": SamplersConfig(workers=1)}, "does not go with samplers.workers=1"),
    ],
)
def test_what_cannot_go_on_after_an_update_is_refused(keys, said) -> None:
    with pytest.raises(ConfigError, match=said):
        RLConfig(stragglers=StragglersConfig(groups=1), **keys)
    with pytest.raises(ConfigError, match="staleness=0 must be at least 1"):
        StragglersConfig(groups=1, staleness=0)
