"""Direct preference optimisation (Rafailov et al., arXiv 2305.18290, eq. 7).

With pi the policy, ref the model that the stage started from, and w, l the preferred and the other answer to x:

    margin = log pi(w|x) / ref(w|x) - log pi(l|x) / ref(l|x)
    loss   = -(1 - s) log sigmoid(beta margin) - s log sigmoid(-beta margin)

s is the label smoothing of conservative DPO: the share of pairs believed to be the wrong way round. What an answer's
log-ratio times beta says is called its reward: the one that the policy is optimal for.

Shapes: X pairs, N trained tokens, G answers (two of each pair, the preferred one first).
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from sobre.kernels import select
from sobre.models.decoder import Decoder
from sobre.models.step import StepOutput
from sobre.preference.config import DPOConfig
from sobre.train.batch import Batch
from sobre.train.losses import Loss, LossFn


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
        reference = answer_sums(batch.first.pick(batch.streams["reference"]), batch)
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
    pick, head_VD = batch.first.pick, model.head_VD.to(output.hidden_ND.dtype)
    nll_N = select.linear_nll(pick(output.hidden_ND), head_VD, pick(batch.targets_N))
    return answer_sums(-nll_N, batch)


def answer_sums(values_N: Tensor, batch: Batch) -> Pairs:
    """Sums over the answers of what stands at their compared tokens."""
    sums_G = values_N.new_zeros(len(batch.step.lengths))
    sums_G = sums_G.index_add(0, batch.first.pick(batch.streams["answer"]), values_N)
    return Pairs(sums_G[0::2], sums_G[1::2])
