"""Expected numbers are computed here with `math`, one token at a time, from the formulas of the papers.

Where TRL has the method, tests/parity/test_objectives_trl.py compares loss and gradient with its own.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sobre.rl.batch import minibatches, to_batch, to_samples
from sobre.rl.config import (
    CISPOConfig,
    DAPOConfig,
    DeepSeekV32Config,
    DrGRPOConfig,
    GRPOConfig,
    GSPOConfig,
    PublishedConfig,
    RLConfig,
    RLOOConfig,
)
from sobre.rl.losses import policy_loss
from sobre.rl.objectives import Streams, objective
from sobre.rl.types import Group, Sample

LOGP = [-0.5, -1.0, -2.0, -0.1, -3.0]
BEHAVIOUR = [-0.5, -1.4, -1.5, -0.6, -2.0]  # ratios 1, 1.49, 0.61, 1.65, 0.37
ADVANTAGE = [0.5, 0.5, 0.5, -0.5, -0.5]
REFERENCE = [-0.7, -1.0, -1.0, -0.3, -3.5]


def streams(weights: list[float] | None = None, reference: list[float] | None = None) -> Streams:
    def tensor(values: list[float]) -> torch.Tensor:
        return torch.tensor(values)

    known = None if reference is None else tensor(reference)
    return Streams(tensor(BEHAVIOUR), tensor(ADVANTAGE), tensor(weights or [1.0] * 5), known)


def clipped(logp: float, behaviour: float, advantage: float, low: float, high: float) -> float:
    ratio = math.exp(logp - behaviour)
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def k3(logp: float, reference: float) -> float:
    return math.exp(reference - logp) - (reference - logp) - 1


def test_every_token_weighs_the_same_and_is_clipped_higher_above_than_below() -> None:
    terms = [clipped(*token, 0.2, 0.28) for token in zip(LOGP, BEHAVIOUR, ADVANTAGE, strict=True)]
    # by hand, of the ratios: 1; 1.49 capped at 1.28; 0.61 counts; 1.65 of a bad token counts; 0.37 held at 0.8
    assert terms == pytest.approx([-0.5, -0.64, -0.303265, 0.824361, 0.4], abs=1e-6)
    loss = objective(torch.tensor(LOGP), streams(), GRPOConfig())
    assert float(loss.sum) == pytest.approx(sum(terms), abs=1e-6)


def test_the_published_form_takes_a_mean_for_each_answer_and_adds_the_k3_kl() -> None:
    beta, cfg = 0.04, PublishedConfig(clip=0.2, kl=0.04)
    terms = [
        clipped(p, b, a, 0.2, 0.2) + beta * k3(p, r)
        for p, b, a, r in zip(LOGP, BEHAVIOUR, ADVANTAGE, REFERENCE, strict=True)
    ]
    answers = [sum(terms[:3]) / 3, sum(terms[3:]) / 2]
    weights = [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2]
    loss = objective(torch.tensor(LOGP), streams(weights, REFERENCE), cfg)
    assert float(loss.sum) / sum(weights) == pytest.approx(sum(answers) / 2, abs=1e-6)
    kl = sum(k3(p, r) * w for p, r, w in zip(LOGP, REFERENCE, weights, strict=True))
    assert float(loss.stats["kl_reference"]) == pytest.approx(kl, abs=1e-6)


def test_the_kl_of_ours_is_weighted_by_the_ratio() -> None:
    tokens = list(zip(LOGP, BEHAVIOUR, ADVANTAGE, REFERENCE, strict=True))
    kl = [math.exp(p - b) * k3(p, r) for p, b, _, r in tokens]
    terms = [clipped(p, b, a, 0.2, 0.28) + 0.1 * d for (p, b, a, _), d in zip(tokens, kl, strict=True)]
    loss = objective(torch.tensor(LOGP), streams(reference=REFERENCE), GRPOConfig(kl=0.1))
    assert float(loss.sum) == pytest.approx(sum(terms), abs=1e-6)


def test_on_policy_the_gradient_is_the_advantage_times_the_gradient_of_log_p() -> None:
    logp_N = torch.tensor(BEHAVIOUR, requires_grad=True)
    objective(logp_N, streams(), GRPOConfig()).sum.backward()
    assert_close(logp_N.grad, -torch.tensor(ADVANTAGE))


def test_a_token_beyond_the_clip_gets_no_gradient_in_the_direction_it_went() -> None:
    logp_N = torch.tensor(LOGP, requires_grad=True)
    objective(logp_N, streams(), GRPOConfig()).sum.backward()
    ratios = [math.exp(p - b) for p, b in zip(LOGP, BEHAVIOUR, strict=True)]
    # good and too likely already: none; bad and too rare already: none; the rest: -ratio * advantage
    assert_close(logp_N.grad, torch.tensor([-0.5, 0.0, -0.5 * ratios[2], 0.5 * ratios[3], 0.0]))


def test_the_k3_kl_pulls_towards_the_reference() -> None:
    logp_N = torch.tensor(BEHAVIOUR, requires_grad=True)
    known = Streams(torch.tensor(BEHAVIOUR), torch.zeros(5), torch.ones(5), torch.tensor(REFERENCE))
    objective(logp_N, known, PublishedConfig(kl=1.0)).sum.backward()
    higher_than_reference = torch.tensor(BEHAVIOUR) > torch.tensor(REFERENCE)
    assert ((logp_N.grad > 0) == higher_than_reference).all()


def test_a_weight_of_zero_leaves_a_token_out_of_loss_and_statistics() -> None:
    whole = objective(torch.tensor(LOGP), streams([1.0, 1.0, 0.0, 1.0, 0.0]), GRPOConfig())
    kept = [0, 1, 3]
    part_streams = Streams(
        torch.tensor([BEHAVIOUR[i] for i in kept]), torch.tensor([ADVANTAGE[i] for i in kept]), torch.ones(3)
    )
    part = objective(torch.tensor([LOGP[i] for i in kept]), part_streams, GRPOConfig())
    assert_close(whole.sum, part.sum)
    assert {name: float(value) for name, value in whole.stats.items()} == pytest.approx(
        {name: float(value) for name, value in part.stats.items()}
    )


def test_the_statistics_say_what_was_clipped_and_how_far_the_policy_moved() -> None:
    stats = {name: float(value) for name, value in objective(torch.tensor(LOGP), streams(), GRPOConfig()).stats.items()}
    ratios = [math.exp(p - b) for p, b in zip(LOGP, BEHAVIOUR, strict=True)]
    assert stats["clipped_high"] == 1
    assert stats["clipped_low"] == 1
    assert stats["ratio"] == pytest.approx(sum(ratios))
    assert stats["surprise"] == pytest.approx(-sum(LOGP))
    assert stats["kl_behaviour"] == pytest.approx(sum(r - math.log(r) - 1 for r in ratios))


# The five tokens as two answers: the first of three good tokens, the second of two bad ones.
ANSWERS = torch.tensor([0, 0, 0, 1, 1])
PER_ANSWER = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2])


def answers(weights_N: torch.Tensor = PER_ANSWER, **more: torch.Tensor) -> Streams:
    return Streams(torch.tensor(BEHAVIOUR), torch.tensor(ADVANTAGE), weights_N, answer_N=ANSWERS, **more)


def log_ratios() -> list[float]:
    return [p - b for p, b in zip(LOGP, BEHAVIOUR, strict=True)]


def test_gspo_gives_each_answer_the_geometric_mean_of_its_ratios() -> None:
    first, second = math.exp(sum(log_ratios()[:3]) / 3), math.exp(sum(log_ratios()[3:]) / 2)
    cfg = GSPOConfig(clip_low=0.1, clip_high=0.2)
    expected = -min(first * 0.5, min(first, 1.2) * 0.5) - min(second * -0.5, max(second, 0.9) * -0.5)
    assert float(objective(torch.tensor(LOGP), answers(), cfg).sum) == pytest.approx(expected, abs=1e-6)


def test_rloo_takes_the_probability_of_the_whole_answer() -> None:
    first, second = math.exp(sum(log_ratios()[:3])), math.exp(sum(log_ratios()[3:]))
    expected = -min(first * 0.5, min(first, 1.2) * 0.5) - min(second * -0.5, max(second, 0.8) * -0.5)
    assert float(objective(torch.tensor(LOGP), answers(), RLOOConfig()).sum) == pytest.approx(expected, abs=1e-6)
    logp_N = torch.tensor(BEHAVIOUR, requires_grad=True)
    objective(logp_N, answers(), RLOOConfig()).sum.backward()
    assert_close(logp_N.grad, -torch.tensor(ADVANTAGE))  # on policy: REINFORCE over the answer, each token alike


def test_cispo_caps_the_weight_and_keeps_every_gradient() -> None:
    logp_N = torch.tensor(LOGP, requires_grad=True)
    objective(logp_N, streams(), CISPOConfig(max_ratio=1.5)).sum.backward()
    expected = [-min(math.exp(r), 1.5) * a for r, a in zip(log_ratios(), ADVANTAGE, strict=True)]
    assert_close(logp_N.grad, torch.tensor(expected))


def test_deepseek_v32_leaves_out_bad_answers_that_drifted_and_weighs_the_kl_by_the_ratio() -> None:
    # the second answer became rarer by (-0.5 + 1.0) / 2 = 0.25 nats per token
    kept, left = DeepSeekV32Config(max_drift=0.26, kl=0.1), DeepSeekV32Config(max_drift=0.24, kl=0.1)
    known = answers(reference_N=torch.tensor(REFERENCE))
    tokens = list(zip(LOGP, BEHAVIOUR, ADVANTAGE, REFERENCE, PER_ANSWER.tolist(), strict=True))
    policy = [clipped(p, b, a, 0.2, 0.2) * w for p, b, a, _, w in tokens]
    kl = sum(0.1 * math.exp(p - b) * k3(p, r) * w for p, b, _, r, w in tokens)
    assert float(objective(torch.tensor(LOGP), known, kept).sum) == pytest.approx(sum(policy) + kl, abs=1e-6)
    assert float(objective(torch.tensor(LOGP), known, left).sum) == pytest.approx(sum(policy[:3]) + kl, abs=1e-6)
    strict = DeepSeekV32Config(max_drift=0.03, kl=0.1)  # the good answer became rarer by 0.1 / 3, and counts still
    assert float(objective(torch.tensor(LOGP), known, strict).sum) == pytest.approx(sum(policy[:3]) + kl, abs=1e-6)


def test_truncated_importance_sampling_clips_against_the_trainer_and_weighs_by_the_capped_mismatch() -> None:
    old = [-0.4, -1.1, -1.9, -0.5, -2.5]
    loss = objective(
        torch.tensor(LOGP), answers(torch.ones(5), old_N=torch.tensor(old)), DAPOConfig(), max_correction=1.2
    )
    expected = [
        clipped(p, o, a, 0.2, 0.28) * min(math.exp(o - b), 1.2)
        for p, o, a, b in zip(LOGP, old, ADVANTAGE, BEHAVIOUR, strict=True)
    ]
    assert float(loss.sum) == pytest.approx(sum(expected), abs=1e-6)
    # before the first update the trainer's own ratio is 1, so that only the mismatch is left
    first = objective(torch.tensor(LOGP), answers(torch.ones(5)), DAPOConfig(), max_correction=2.0)
    expected = [-a * min(math.exp(r), 2.0) for r, a in zip(log_ratios(), ADVANTAGE, strict=True)]
    assert float(first.sum) == pytest.approx(sum(expected), abs=1e-6)


def test_probabilities_are_over_the_words_that_the_sampler_chose_from(make) -> None:
    """Two words each way: at the first token 0 and 2 were left (0 was taken), at the second 1, 2 and 3 (3 was)."""
    logits = ([1.0, 5.0, 2.0, 0.0], [3.0, 1.0, 0.5, 2.0])
    kept = (np.array([0, 2], np.int32), np.array([1, 2, 3], np.int32))
    cfg, sampled = RLConfig(top_p=0.9), (math.log(0.4), math.log(0.6))
    sample = Sample((1,), (0, 3), sampled, advantage=0.5, weight=1.0, kept=kept)
    batch = to_batch([sample], replay=False)
    model = SimpleNamespace(head_VD=torch.eye(4))
    loss = policy_loss(cfg)(model, SimpleNamespace(hidden_ND=torch.tensor(logits)), batch)
    p = [math.exp(1) / (math.exp(1) + math.exp(2)), math.exp(2) / (math.exp(1) + math.exp(0.5) + math.exp(2))]
    terms = [clipped(math.log(x), q, 0.5, 0.2, 0.28) for x, q in zip(p, sampled, strict=True)]
    assert p == pytest.approx([0.268941, 0.628532], abs=1e-6)
    assert float(loss.sum) == pytest.approx(sum(terms), abs=1e-6)


def test_dr_grpo_divides_by_answers_times_the_limit(make) -> None:
    cfg = RLConfig(algorithm=DrGRPOConfig(), max_tokens=10)
    group = Group(make.problem(), (make.rollout(1.0, n_tokens=2), make.rollout(0.0, n_tokens=6)))
    (part,) = minibatches(to_samples([group], cfg), cfg, "k")
    batch = to_batch(part, replay=False)
    trained = batch.weights_N > 0
    logp_N = batch.streams["behaviour"][trained]
    known = Streams(
        logp_N, batch.streams["advantage"][trained], batch.weights_N[trained], scale_N=batch.streams["scale"][trained]
    )
    step_loss = float(objective(logp_N, known, cfg.algorithm).sum) / float(batch.weights_N.sum())
    assert step_loss == pytest.approx(-(2 * 0.5 + 6 * -0.5) / (2 * 10))
