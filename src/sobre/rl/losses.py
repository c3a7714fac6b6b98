"""The policy loss: an objective behind the loss function that every stage uses.

The trainer is blind to the algorithm: it hands model, output and batch to `policy_loss(cfg)` and divides the sum by the
batch's total weight. Ratios are taken against the log-probabilities that the engine itself reported, at the same
temperature. The objectives are in `objectives.py`.

Shapes: N trained tokens (where a weight is not zero), D width, B bytes of a row of bits.
"""

from collections.abc import Callable

from torch import Tensor

from sobre.kernels import select
from sobre.models.decoder import Decoder
from sobre.models.step import StepOutput
from sobre.rl.config import RLConfig
from sobre.rl.objectives import Streams, objective
from sobre.train.batch import Batch
from sobre.train.losses import Loss, LossFn

Watch = Callable[[Tensor, Streams], None]
"""Sees log-probabilities (detached) and streams of each micro-batch, e.g. `rl.mismatch`."""


def policy_loss(cfg: RLConfig, watch: Watch | None = None) -> LossFn:
    """The loss function that `train_step` takes."""

    def loss(model: Decoder, output: StepOutput, batch: Batch) -> Loss:
        pick = batch.first.pick

        def stream(name: str) -> Tensor | None:
            return pick(batch.streams[name]) if name in batch.streams else None

        targets_N = pick(batch.targets_N)
        logp_N = log_probs(model, pick(output.hidden_ND), targets_N, cfg.temperature, stream("kept_NB"))

        streams = Streams(
            behaviour_N=pick(batch.streams["behaviour"]),
            advantage_N=pick(batch.streams["advantage"]),
            weights_N=pick(batch.weights_N),
            reference_N=stream("reference"),
            answer_N=stream("answer"),
            scale_N=stream("scale"),
            old_N=stream("old"),
            pieces=batch.step.pieces,
        )
        if watch is not None:
            watch(logp_N.detach(), streams)
        return objective(logp_N, streams, cfg.algorithm, max_correction=cfg.max_correction)

    return loss


def log_probs(
    model: Decoder, hidden_ND: Tensor, targets_N: Tensor, temperature: float, kept_NB: Tensor | None = None
) -> Tensor:
    """log p(target) at `temperature` (float32): dividing the hidden state divides the logits.

    Where the sampler chose among the kept tokens alone, p is a distribution over the same ones, whatever the weights
    have become: both policies then have the same actions (DeepSeek-V3.2, arXiv 2512.02556, 3.1).
    """
    if temperature != 1.0:
        hidden_ND = hidden_ND / temperature
    return -select.linear_nll(hidden_ND, model.head_VD.to(hidden_ND.dtype), targets_N, kept_NB)
