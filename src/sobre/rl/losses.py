"""Policy losses: pure functions of per-token streams, behind the loss function that every stage uses.

The trainer is blind to the algorithm: it hands model, output and batch to `policy_loss(cfg)` and divides the sum by the
batch's total weight. Ratios are taken against the log-probabilities that the engine itself reported, at the same
temperature.
Sources: GRPO, DeepSeekMath (arXiv 2402.03300, 4.1); clip-higher and the mean over tokens, DAPO (2503.14476); the ratio
in the KL, DeepSeek-V3.2 (2512.02556, 3.1).

Shapes: N trained tokens (where a weight is not zero), D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from sobre.kernels import select
from sobre.models.decoder import Decoder
from sobre.models.step import StepOutput
from sobre.rl.config import GRPOConfig, PublishedConfig, RLConfig
from sobre.train.batch import Batch
from sobre.train.losses import Loss, LossFn


@dataclass(frozen=True)
class Streams:
    """What a policy loss knows of each of N trained tokens."""

    behaviour_N: Tensor
    """Log-probability when it was sampled, under the engine."""
    advantage_N: Tensor
    weights_N: Tensor
    """Weight in the loss: 1, or 1 / the length of its answer."""
    reference_N: Tensor | None = None
    """Log-probability under the model that the stage started from, if the loss has a KL term."""


Watch = Callable[[Tensor, Streams, StepOutput, Batch], None]
"""Sees log-probabilities (detached), streams, output and batch of each micro-batch, e.g. `rl.mismatch`."""


def policy_loss(cfg: RLConfig, watch: Watch | None = None) -> LossFn:
    """The loss function that `train_step` takes."""
    algorithm, temperature = cfg.algorithm, cfg.temperature

    def loss(model: Decoder, output: StepOutput, batch: Batch) -> Loss:
        trained = batch.weights_N.nonzero().squeeze(1)
        logp_N = log_probs(model, output.hidden_ND[trained], batch.targets_N[trained], temperature)
        reference_N = batch.streams.get("reference")
        streams = Streams(
            batch.streams["behaviour"][trained],
            batch.streams["advantage"][trained],
            batch.weights_N[trained],
            None if reference_N is None else reference_N[trained],
        )
        if watch is not None:
            watch(logp_N.detach(), streams, output, batch)
        return surrogate(logp_N, streams, algorithm)

    return loss


def log_probs(model: Decoder, hidden_ND: Tensor, targets_N: Tensor, temperature: float) -> Tensor:
    """log p(target) at `temperature` (float32): dividing the hidden state divides the logits."""
    if temperature != 1.0:
        hidden_ND = hidden_ND / temperature
    return -select.linear_nll(hidden_ND, model.head_VD.to(hidden_ND.dtype), targets_N)


def surrogate(logp_N: Tensor, streams: Streams, cfg: GRPOConfig | PublishedConfig) -> Loss:
    """The loss of the chosen algorithm."""
    match cfg:
        case GRPOConfig():
            return grpo(logp_N, streams, cfg)
        case PublishedConfig():
            return grpo_published(logp_N, streams, cfg)
        case _ as never:
            assert_never(never)


def grpo(logp_N: Tensor, streams: Streams, cfg: GRPOConfig) -> Loss:
    """Token-level GRPO with clip-higher: with all weights 1, every token of the batch counts the same.

    The KL, if any, is times the ratio: without it the gradient of off-policy tokens is biased.
    """
    ratio_N = (logp_N - streams.behaviour_N).exp()
    loss_N = _clipped(ratio_N, streams.advantage_N, cfg.clip_low, cfg.clip_high)
    kl_N = _kl(logp_N, streams) * ratio_N if cfg.kl else None
    return _total(logp_N, loss_N, kl_N, cfg.kl, streams, (cfg.clip_low, cfg.clip_high))


def grpo_published(logp_N: Tensor, streams: Streams, cfg: PublishedConfig) -> Loss:
    """The published form: with weights 1 / |o_i| the sum holds a mean for each answer; the count is their number."""
    ratio_N = (logp_N - streams.behaviour_N).exp()
    loss_N = _clipped(ratio_N, streams.advantage_N, cfg.clip, cfg.clip)
    kl_N = _kl(logp_N, streams) if cfg.kl else None
    return _total(logp_N, loss_N, kl_N, cfg.kl, streams, (cfg.clip, cfg.clip))


def _clipped(ratio_N: Tensor, advantage_N: Tensor, low: float, high: float) -> Tensor:
    """-min(ratio A, clip(ratio) A): no reward for leaving the trusted range, no pardon for having left it."""
    return -torch.minimum(ratio_N * advantage_N, ratio_N.clamp(1 - low, 1 + high) * advantage_N)


def _kl(logp_N: Tensor, streams: Streams) -> Tensor:
    """The k3 estimate of KL(model || reference): q/p - log(q/p) - 1 with q the reference, never negative."""
    assert streams.reference_N is not None, "a KL term needs the reference's log-probabilities"
    log_ratio_N = streams.reference_N - logp_N
    return log_ratio_N.exp() - log_ratio_N - 1


def _total(
    logp_N: Tensor, loss_N: Tensor, kl_N: Tensor | None, kl: float, streams: Streams, clip: tuple[float, float]
) -> Loss:
    """Weighted sums of the loss and of what the log wants to know."""
    if kl_N is not None:
        loss_N = loss_N + kl * kl_N
    with torch.no_grad():
        ratio_N = (logp_N - streams.behaviour_N).exp()
        watched = {
            "ratio": ratio_N,
            "clipped_low": ((ratio_N < 1 - clip[0]) & (streams.advantage_N < 0)).float(),
            "clipped_high": ((ratio_N > 1 + clip[1]) & (streams.advantage_N > 0)).float(),
            "surprise": -logp_N,
            "kl_behaviour": ratio_N - ratio_N.log() - 1,
            **({} if kl_N is None else {"kl_reference": kl_N}),
        }
        stats = {name: (value_N * streams.weights_N).sum() for name, value_N in watched.items()}
    return Loss((loss_N * streams.weights_N).sum(), stats)
