"""Expected numbers are computed here with `math`, one token at a time, from the formulas of the papers.

They equal TRL's: loss_type "dapo" with beta 0 for ours (sum over tokens / their number), loss_type "grpo" with beta for
the published form (mean over answers of the mean over their tokens).
"""

import math

import pytest
import torch
from torch.testing import assert_close

from sobre.rl.config import GRPOConfig, PublishedConfig
from sobre.rl.losses import Streams, grpo, grpo_published

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
    loss = grpo(torch.tensor(LOGP), streams(), GRPOConfig())
    assert float(loss.sum) == pytest.approx(sum(terms), abs=1e-6)


def test_the_published_form_takes_a_mean_for_each_answer_and_adds_the_k3_kl() -> None:
    beta, cfg = 0.04, PublishedConfig(clip=0.2, kl=0.04)
    terms = [
        clipped(p, b, a, 0.2, 0.2) + beta * k3(p, r)
        for p, b, a, r in zip(LOGP, BEHAVIOUR, ADVANTAGE, REFERENCE, strict=True)
    ]
    answers = [sum(terms[:3]) / 3, sum(terms[3:]) / 2]
    weights = [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2]
    loss = grpo_published(torch.tensor(LOGP), streams(weights, REFERENCE), cfg)
    assert float(loss.sum) / sum(weights) == pytest.approx(sum(answers) / 2, abs=1e-6)
    kl = sum(k3(p, r) * w for p, r, w in zip(LOGP, REFERENCE, weights, strict=True))
    assert float(loss.stats["kl_reference"]) == pytest.approx(kl, abs=1e-6)


def test_the_kl_of_ours_is_weighted_by_the_ratio() -> None:
    tokens = list(zip(LOGP, BEHAVIOUR, ADVANTAGE, REFERENCE, strict=True))
    kl = [math.exp(p - b) * k3(p, r) for p, b, _, r in tokens]
    terms = [clipped(p, b, a, 0.2, 0.28) + 0.1 * d for (p, b, a, _), d in zip(tokens, kl, strict=True)]
    loss = grpo(torch.tensor(LOGP), streams(reference=REFERENCE), GRPOConfig(kl=0.1))
    assert float(loss.sum) == pytest.approx(sum(terms), abs=1e-6)


def test_on_policy_the_gradient_is_the_advantage_times_the_gradient_of_log_p() -> None:
    logp_N = torch.tensor(BEHAVIOUR, requires_grad=True)
    grpo(logp_N, streams(), GRPOConfig()).sum.backward()
    assert_close(logp_N.grad, -torch.tensor(ADVANTAGE))


def test_a_token_beyond_the_clip_gets_no_gradient_in_the_direction_it_went() -> None:
    logp_N = torch.tensor(LOGP, requires_grad=True)
    grpo(logp_N, streams(), GRPOConfig()).sum.backward()
    ratios = [math.exp(p - b) for p, b in zip(LOGP, BEHAVIOUR, strict=True)]
    # good and too likely already: none; bad and too rare already: none; the rest: -ratio * advantage
    assert_close(logp_N.grad, torch.tensor([-0.5, 0.0, -0.5 * ratios[2], 0.5 * ratios[3], 0.0]))


def test_the_k3_kl_pulls_towards_the_reference() -> None:
    logp_N = torch.tensor(BEHAVIOUR, requires_grad=True)
    known = Streams(torch.tensor(BEHAVIOUR), torch.zeros(5), torch.ones(5), torch.tensor(REFERENCE))
    grpo_published(logp_N, known, PublishedConfig(kl=1.0)).sum.backward()
    higher_than_reference = torch.tensor(BEHAVIOUR) > torch.tensor(REFERENCE)
    assert ((logp_N.grad > 0) == higher_than_reference).all()


def test_a_weight_of_zero_leaves_a_token_out_of_loss_and_statistics() -> None:
    whole = grpo(torch.tensor(LOGP), streams([1.0, 1.0, 0.0, 1.0, 0.0]), GRPOConfig())
    kept = [0, 1, 3]
    part_streams = Streams(
        torch.tensor([BEHAVIOUR[i] for i in kept]), torch.tensor([ADVANTAGE[i] for i in kept]), torch.ones(3)
    )
    part = grpo(torch.tensor([LOGP[i] for i in kept]), part_streams, GRPOConfig())
    assert_close(whole.sum, part.sum)
    assert {name: float(value) for name, value in whole.stats.items()} == pytest.approx(
        {name: float(value) for name, value in part.stats.items()}
    )


def test_the_statistics_say_what_was_clipped_and_how_far_the_policy_moved() -> None:
    stats = {name: float(value) for name, value in grpo(torch.tensor(LOGP), streams(), GRPOConfig()).stats.items()}
    ratios = [math.exp(p - b) for p, b in zip(LOGP, BEHAVIOUR, strict=True)]
    assert stats["clipped_high"] == 1
    assert stats["clipped_low"] == 1
    assert stats["ratio"] == pytest.approx(sum(ratios))
    assert stats["surprise"] == pytest.approx(-sum(LOGP))
    assert stats["kl_behaviour"] == pytest.approx(sum(r - math.log(r) - 1 for r in ratios))
