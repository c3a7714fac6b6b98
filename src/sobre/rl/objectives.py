"""The objectives: pure functions from log-probabilities to a loss for each token, by the name that the recipe gives.

Letters of the formulas: p the policy's probability of a token, q that of the engine when it sampled the token (or the
trainer's own before the update, where `max_correction` asks for it), r = p / q, A the advantage, |o| the length of an
answer. Every function returns the per-token loss and the per-token KL (None without one); the weights of `Streams` turn
their sum into the mean that the method asks for: over tokens, over answers, or over answers times the length limit.
Where a method treats an answer as a whole, each of its tokens carries the whole answer's loss and the weight 1 / |o|.

Shapes: N trained tokens (where a weight is not zero), G answers.
"""

from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from sobre.models.step import Pieces
from sobre.rl.config import (
    Algorithm,
    CISPOConfig,
    DAPOConfig,
    DeepSeekV32Config,
    DrGRPOConfig,
    GRPOConfig,
    GSPOConfig,
    PublishedConfig,
    RLOOConfig,
)
from sobre.train.losses import Loss


@dataclass(frozen=True)
class Streams:
    """What an objective knows of each of N trained tokens."""

    behaviour_N: Tensor
    """Log-probability when it was sampled, under the engine."""
    advantage_N: Tensor
    weights_N: Tensor
    """Weight in the loss: 1, or 1 / the length of its answer."""
    reference_N: Tensor | None = None
    """Log-probability under the reference model, if the loss has a KL term."""
    answer_N: Tensor | None = None
    """Number of the answer that the token belongs to, for methods that look at whole answers; below N."""
    scale_N: Tensor | None = None
    """Factor of the loss beside the weight, which the step divides by."""
    old_N: Tensor | None = None
    """Log-probability under the trainer before the update; None takes the present one, as in the first update."""
    pieces: Pieces | None = None
    """Where the other tokens of these answers are, if other processes have some; None: all are here."""


@dataclass(frozen=True)
class Terms:
    """What an objective says of each token."""

    loss_N: Tensor
    ratio_N: Tensor
    """The ratio as the objective sees it: of a token, or of its answer."""
    low: float
    high: float
    """Outside of these the ratio is clipped."""
    kl_N: Tensor | None = None


def objective(logp_N: Tensor, streams: Streams, cfg: Algorithm, *, max_correction: float = 0.0) -> Loss:
    """Weighted sums of the chosen objective and of what the log wants to know.

    `max_correction` C above 0 is truncated importance sampling (Yao et al. 2025): the ratio is taken against the
    trainer before the update, and the loss is multiplied by min(p_before / p_engine, C), constant for the gradient.
    """
    correction_N = None
    base_N = streams.behaviour_N
    if max_correction > 0:
        base_N = logp_N.detach() if streams.old_N is None else streams.old_N
        correction_N = truncated_importance(base_N, streams.behaviour_N, max_correction)
    terms = _terms(logp_N, base_N, streams, cfg)
    loss_N = terms.loss_N if correction_N is None else terms.loss_N * correction_N
    if terms.kl_N is not None:
        loss_N = loss_N + cfg.kl * terms.kl_N
    if streams.scale_N is not None:
        loss_N = loss_N * streams.scale_N
    with torch.no_grad():
        ratio_N, moved_N = terms.ratio_N, (logp_N - streams.behaviour_N).exp()
        watched = {
            "ratio": ratio_N,
            "clipped_low": ((ratio_N < terms.low) & (streams.advantage_N < 0)).float(),
            "clipped_high": ((ratio_N > terms.high) & (streams.advantage_N > 0)).float(),
            "surprise": -logp_N,
            "kl_behaviour": moved_N - moved_N.log() - 1,
            **({} if terms.kl_N is None else {"kl_reference": terms.kl_N}),
            **({} if correction_N is None else {"correction": correction_N}),
        }
        stats = {name: (value_N * streams.weights_N).sum() for name, value_N in watched.items()}
    return Loss((loss_N * streams.weights_N).sum(), stats)


def _terms(logp_N: Tensor, base_N: Tensor, streams: Streams, cfg: Algorithm) -> Terms:
    match cfg:
        case GRPOConfig():
            return grpo(logp_N, base_N, streams, cfg)
        case PublishedConfig():
            return grpo_published(logp_N, base_N, streams, cfg)
        case DrGRPOConfig():
            return dr_grpo(logp_N, base_N, streams, cfg)
        case DAPOConfig():
            return dapo(logp_N, base_N, streams, cfg)
        case GSPOConfig():
            return gspo(logp_N, base_N, streams, cfg)
        case CISPOConfig():
            return cispo(logp_N, base_N, streams, cfg)
        case RLOOConfig():
            return rloo(logp_N, base_N, streams, cfg)
        case DeepSeekV32Config():
            return deepseek_v32(logp_N, base_N, streams, cfg)
        case _ as never:
            assert_never(never)


def grpo(logp_N: Tensor, base_N: Tensor, streams: Streams, cfg: GRPOConfig) -> Terms:
    """-min(r A, clip(r, 1 - low, 1 + high) A) + kl r k3, A = reward - mean, one mean over all tokens of the batch.

    The combination that is run today: the mean over tokens and clip-higher of DAPO, the advantage of Dr. GRPO and
    DeepSeek-V3.2, the ratio in the KL of DeepSeek-V3.2 (without it the gradient of off-policy tokens is biased).
    """
    ratio_N = (logp_N - base_N).exp()
    kl_N = k3(logp_N, streams) * ratio_N if cfg.kl else None
    return _clipped(ratio_N, streams, 1 - cfg.clip_low, 1 + cfg.clip_high, kl_N)


def grpo_published(logp_N: Tensor, base_N: Tensor, streams: Streams, cfg: PublishedConfig) -> Terms:
    """DeepSeekMath (arXiv 2402.03300, 4.1), R1: 1/G sum_i 1/|o_i| sum_t [-min(r A, clip(r, 1 - e, 1 + e) A) + kl k3].

    A = (reward - mean) / std.
    """
    ratio_N = (logp_N - base_N).exp()
    return _clipped(ratio_N, streams, 1 - cfg.clip, 1 + cfg.clip, k3(logp_N, streams) if cfg.kl else None)


def dr_grpo(logp_N: Tensor, base_N: Tensor, streams: Streams, cfg: DrGRPOConfig) -> Terms:
    """Dr. GRPO (arXiv 2503.20783): 1 / (G L) sum_i sum_t -min(r A, clip(r, 1 - e, 1 + e) A), L the length limit.

    A = reward - mean. Dividing by |o| makes long wrong answers cheap; the constant does not.
    """
    ratio_N = (logp_N - base_N).exp()
    return _clipped(ratio_N, streams, 1 - cfg.clip, 1 + cfg.clip, k3(logp_N, streams) if cfg.kl else None)


def dapo(logp_N: Tensor, base_N: Tensor, streams: Streams, cfg: DAPOConfig) -> Terms:
    """DAPO (arXiv 2503.14476): 1 / sum |o_i| sum_i sum_t -min(r A, clip(r, 1 - low, 1 + high) A), no KL.

    A = (reward - mean) / std; replacing flat groups and the penalty near the limit happen in the rollout.
    """
    ratio_N = (logp_N - base_N).exp()
    return _clipped(ratio_N, streams, 1 - cfg.clip_low, 1 + cfg.clip_high, None)


def gspo(logp_N: Tensor, base_N: Tensor, streams: Streams, cfg: GSPOConfig) -> Terms:
    """GSPO (arXiv 2507.18071): 1/G sum_i -min(s A, clip(s, 1 - low, 1 + high) A), s = exp(1/|o| sum_t log r_t).

    One token whose experts flipped cannot swing the ratio of its answer, which is what makes it calm on mixtures.
    """
    ratio_N = answer_mean(logp_N - base_N, streams).exp()
    return _clipped(ratio_N, streams, 1 - cfg.clip_low, 1 + cfg.clip_high, None)


def cispo(logp_N: Tensor, base_N: Tensor, streams: Streams, cfg: CISPOConfig) -> Terms:
    """CISPO (MiniMax-M1, arXiv 2506.13585): 1 / sum |o_i| sum_i sum_t -sg(min(r, max)) A log p.

    sg stops the gradient: the ratio only weighs, so that no token ever loses its gradient.
    """
    ratio_N = (logp_N - base_N).exp().detach()
    loss_N = -ratio_N.clamp(max=cfg.max_ratio) * streams.advantage_N * logp_N
    return Terms(loss_N, ratio_N, 0.0, cfg.max_ratio)


def rloo(logp_N: Tensor, base_N: Tensor, streams: Streams, cfg: RLOOConfig) -> Terms:
    """RLOO (arXiv 2402.14740): 1/G sum_i -min(R A, clip(R, 1 - e, 1 + e) A), R the ratio of the whole answer.

    A = reward - mean of the others. On the policy that sampled, R = 1 and the gradient is REINFORCE's, A grad log p(o).
    """
    ratio_N = answer_sum(logp_N - base_N, streams).exp()
    return _clipped(ratio_N, streams, 1 - cfg.clip, 1 + cfg.clip, None)


def deepseek_v32(logp_N: Tensor, base_N: Tensor, streams: Streams, cfg: DeepSeekV32Config) -> Terms:
    """DeepSeek-V3.2 (arXiv 2512.02556, 3.1): 1/G sum_i 1/|o_i| sum_t [-min(r A, clip(r, 1 - e, 1 + e) A) M + kl r k3].

    A = reward - mean. M = 0 for an answer with A < 0 whose mean log(q / p), with q of the engine, exceeds `max_drift`:
    what the policy would hardly write any more teaches only noise.
    """
    ratio_N = (logp_N - base_N).exp()
    terms = _clipped(ratio_N, streams, 1 - cfg.clip, 1 + cfg.clip, k3(logp_N, streams) * ratio_N if cfg.kl else None)
    drift_N = answer_mean(streams.behaviour_N - logp_N.detach(), streams)
    kept_N = (streams.advantage_N >= 0) | (drift_N <= cfg.max_drift)
    return Terms(terms.loss_N * kept_N, ratio_N, terms.low, terms.high, terms.kl_N)


def truncated_importance(old_N: Tensor, behaviour_N: Tensor, most: float) -> Tensor:
    """min(p_before / p_engine, most), without gradient."""
    return (old_N - behaviour_N).exp().clamp(max=most).detach()


def k3(logp_N: Tensor, streams: Streams) -> Tensor:
    """The k3 estimate of KL(policy || reference): f / p - log(f / p) - 1, f the reference's; never negative."""
    assert streams.reference_N is not None, "a KL term needs the reference's log-probabilities"
    log_ratio_N = streams.reference_N - logp_N
    return log_ratio_N.exp() - log_ratio_N - 1


def answer_sum(values_N: Tensor, streams: Streams) -> Tensor:
    """For each token, the sum over its answer."""
    answer_N, pieces = _answers(streams), streams.pieces
    n_answers = len(values_N) if pieces is None else len(pieces.lengths)  # G is no more, and that is known at once
    sums_G = values_N.new_zeros(n_answers).index_add(0, answer_N, values_N)
    return (sums_G if pieces is None else pieces.added(sums_G))[answer_N]


def answer_mean(values_N: Tensor, streams: Streams) -> Tensor:
    """For each token, the mean over its answer."""
    return answer_sum(values_N, streams) / answer_sum(torch.ones_like(values_N), streams)


def _answers(streams: Streams) -> Tensor:
    assert streams.answer_N is not None, "an objective over whole answers needs to know which token is whose"
    return streams.answer_N


def _clipped(ratio_N: Tensor, streams: Streams, low: float, high: float, kl_N: Tensor | None) -> Terms:
    """-min(ratio A, clip(ratio) A): no reward for leaving the trusted range, no pardon for having left it."""
    advantage_N = streams.advantage_N
    loss_N = -torch.minimum(ratio_N * advantage_N, ratio_N.clamp(low, high) * advantage_N)
    return Terms(loss_N, ratio_N, low, high, kl_N)
