"""The draw of a token from its logits and a uniform number.

The number meets the distribution function in two levels, blocks of tokens and then the tokens of one block, summed in
float64: cheaper than one long running sum, and a token of probability 1e-12 still comes up once in 1e12 draws.

Shapes: R rows, V vocabulary, J blocks of W tokens (J * W = V, padded).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Tokens of a block: near the square root of common vocabularies, where both levels cost the same."""


def draw(logits_RV: Tensor, scale_R1: Tensor | None, uniforms_R: Tensor) -> tuple[Tensor, Tensor]:
    """The same function as `reference.draw`."""
    probs_RV = (logits_RV if scale_R1 is None else logits_RV * scale_R1).softmax(-1)
    tokens_R, totals_R = invert(probs_RV, uniforms_R)
    return tokens_R, log(pick(probs_RV, tokens_R) / totals_R)


def invert(weights_RV: Tensor, uniforms_R: Tensor) -> tuple[Tensor, Tensor]:
    """The first token of each row at which the running sum exceeds uniform * total, and the totals (float64)."""
    n_tokens = weights_RV.shape[1]
    if n_tokens % BLOCK:
        weights_RV = F.pad(weights_RV, (0, -n_tokens % BLOCK))
    weights_RJW = weights_RV.unflatten(1, (-1, BLOCK))
    sums_RJ = weights_RJW.sum(-1, dtype=torch.float64).cumsum(-1)
    totals_R1 = sums_RJ[:, -1:]
    block_R1, rest_R1 = _first_above(sums_RJ, uniforms_R.unsqueeze(1) * totals_R1)
    inside_RW = weights_RJW.gather(1, block_R1.unsqueeze(2).expand(-1, -1, BLOCK)).squeeze(1)
    within_R1, _ = _first_above(inside_RW.double().cumsum(-1), rest_R1)
    chosen_R1 = (block_R1 * BLOCK + within_R1).clamp_(max=n_tokens - 1)  # a row of NaN would point into the padding
    return chosen_R1.squeeze(1), totals_R1.squeeze(1)


def _first_above(sums_RJ: Tensor, targets_R1: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first running sum above each target, and what of the target lies beyond the sum before it.

    A target that rounding lifted to the total falls back just below it: the last token with any weight is taken.
    """
    below_R1 = torch.nextafter(sums_RJ[:, -1:], torch.zeros_like(targets_R1))
    targets_R1 = torch.minimum(targets_R1, below_R1)
    index_R1 = torch.searchsorted(sums_RJ, targets_R1, right=True).clamp_(max=sums_RJ.shape[1] - 1)
    before_R1 = sums_RJ.gather(1, (index_R1 - 1).clamp_(min=0)).masked_fill_(index_R1 == 0, 0.0)
    return index_R1, targets_R1 - before_R1


def log(x_R: Tensor) -> Tensor:
    """Logarithms whose bits do not depend on how many there are: a library treats a vector's rest in another way."""
    return F.pad(x_R, (0, -len(x_R) % 16), value=1.0).log()[: len(x_R)]


def pick(probs_RV: Tensor, tokens_R: Tensor) -> Tensor:
    """The probability of each row's token."""
    return probs_RV.gather(1, tokens_R.unsqueeze(1)).squeeze(1)
