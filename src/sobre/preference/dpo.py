"""Direct preference optimisation (Rafailov et al., arXiv 2305.18290, eq. 7).

With pi the policy, ref the model that the stage started from, and w, l the preferred and the other answer to x:

    margin = log pi(w|x) / ref(w|x) - log pi(l|x) / ref(l|x)
    loss   = -(1 - s) log sigmoid(beta margin) - s log sigmoid(-beta margin)

s is the label smoothing of conservative DPO: the share of pairs believed to be the wrong way round. What an answer's
log-ratio times beta says is called its reward: the one that the policy is optimal for.

Shapes: X pairs, N trained tokens, G answers (two of each pair, the preferred one first).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sobre.models.decoder import Decoder
from sobre.models.step import StepOutput
from sobre.preference.config import DPOConfig
from sobre.train.batch import Batch
from sobre.train.losses import Loss, LossFn, target_nll


class Pairs(NamedTuple):
    """log-probabilities of whole answers, a pair in each row."""

    chosen_X: Tensor
    rejected_X: Tensor


def dpo(policy: Pairs, reference: Pairs, *, beta: float, label_smoothing: float = 0.0) -> tuple[Tensor, Pairs]:
    """The loss of each pair, and the rewards of its answers (without gradient)."""
    chosen_X = policy.chosen_X - reference.chosen_X
    rejected_X = policy.rejected_X - reference.rejected_X
    margin_X = beta * (chosen_X - rejected_X)
    loss_X = -(1 - label_smoothing) * F.logsigmoid(margin_X) - label_smoothing * F.logsigmoid(-margin_X)
    return loss_X, Pairs((beta * chosen_X).detach(), (beta * rejected_X).detach())


def preference_loss(cfg: DPOConfig) -> LossFn:
    """The loss function that `train_step` takes; the weights of a pair's tokens sum to 1, so it divides by pairs."""

    def loss(model: Decoder, output: StepOutput, batch: Batch) -> Loss:
        policy = answer_log_probs(model, output, batch)
        reference = _halves(answers(batch.streams["reference"], batch))
        loss_X, rewards = dpo(policy, reference, beta=cfg.beta, label_smoothing=cfg.label_smoothing)
        stats = {
            "reward_chosen": rewards.chosen_X.sum(),
            "reward_rejected": rewards.rejected_X.sum(),
            "margin": (rewards.chosen_X - rewards.rejected_X).sum(),
            "preferred": (rewards.chosen_X > rewards.rejected_X).float().sum(),
        }
        return Loss(loss_X.sum(), stats)

    return loss


def answer_log_probs(model: Decoder, output: StepOutput, batch: Batch) -> Pairs:
    """log p of each whole answer of the batch (float32)."""
    trained = batch.weights_N.nonzero().squeeze(1)
    ones_N = torch.ones_like(batch.weights_N[trained])
    nll_N = target_nll(model, output.hidden_ND[trained], batch.targets_N[trained], ones_N)
    logp_N = torch.zeros_like(batch.weights_N).index_copy(0, trained, -nll_N)
    return _halves(answers(logp_N, batch))


def answers(values_N: Tensor, batch: Batch) -> Tensor:
    """Sums over the answers (G) of what stands at their tokens."""
    answer_N = batch.streams["answer"]
    n_answers = int(answer_N.max()) + 1
    return values_N.new_zeros(n_answers).index_add(0, answer_N, values_N)


def _halves(values_G: Tensor) -> Pairs:
    return Pairs(values_G[0::2], values_G[1::2])
