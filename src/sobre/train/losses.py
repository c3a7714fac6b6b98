"""Losses: each returns a sum and leaves the division to the step, which knows the global count.

A loss is a function of (model, output, batch), so pretraining, fine-tuning, distillation and RL share one step. Every
micro-batch and every process adds its sum; the count is known before the backward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sobre.kernels import select
from sobre.models.decoder import Decoder
from sobre.models.step import StepOutput
from sobre.train.batch import Batch, Learned

ROWS = 1024
"""Tokens whose logits are held at once where they are looked at."""


@dataclass(frozen=True)
class Loss:
    """Terms, each a sum over its tokens; `stats` are detached sums over trained tokens, for the log."""

    sum: Tensor
    stats: Mapping[str, Tensor] = field(default_factory=dict)


class LossFn(Protocol):
    def __call__(self, model: Decoder, output: StepOutput, batch: Batch) -> Loss: ...


def next_token(model: Decoder, output: StepOutput, batch: Batch) -> Loss:
    """Cross-entropy of the next token over the trained tokens."""
    return Loss(target_nll(model, output.hidden_ND, batch.first).sum())


def second_token(model: Decoder, output: StepOutput, batch: Batch) -> tuple[Loss, StepOutput]:
    """Cross-entropy of the MTP module, and the module's own output, for its routing load."""
    ahead = model.predict_second(output.hidden_ND, batch.targets_N, batch.step)
    return Loss(target_nll(model, ahead.hidden_ND, batch.second).sum()), ahead


@torch.no_grad()
def n_right(model: Decoder, hidden_ND: Tensor, learned: Learned) -> Tensor:
    """Sum of the weights of the tokens whose target is what the head takes for the likeliest (float32)."""
    head_VD = model.head_VD.to(hidden_ND.dtype)
    parts = (learned.pick(x_N).split(ROWS) for x_N in (hidden_ND, learned.targets_N, learned.weights_N))
    right = torch.zeros((), device=hidden_ND.device)
    for x_MD, targets_M, weights_M in zip(*parts, strict=True):
        right += weights_M[(x_MD @ head_VD.T).argmax(-1) == targets_M].sum()
    return right


def target_nll(model: Decoder, hidden_ND: Tensor, learned: Learned) -> Tensor:
    """weight * -log p(target) of the tokens whose weight is not zero (float32); the head sees no other token."""
    head_VD = model.head_VD.to(hidden_ND.dtype)
    nll_N = select.linear_nll(learned.pick(hidden_ND), head_VD, learned.pick(learned.targets_N))
    return nll_N if learned.places is None else nll_N * learned.pick(learned.weights_N)
