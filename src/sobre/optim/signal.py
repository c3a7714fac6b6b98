"""How much of a step's gradient the steps share, read from what AdamW remembers: the rest is chance.

AdamW keeps m, a mean of past gradients, and v, a mean of their squares; both recent ones weigh most. Over T steps whose
gradients have one expectation mu and are independent else, with |g|^2 for the mean of their squares,

    E|m|^2 = |mu|^2 + f (|g|^2 - |mu|^2)    and    E sum(v) = |g|^2,

both with Adam's correction for the beginning. f is what chance leaves in a mean with the weights (1 - b) b^(T - i):
the sum of their squares over the square of their sum, f = (1 - b) (1 + b^T) / ((1 + b) (1 - b^T)); 1 at the first step,
1/19 later on with b = 0.9. So (|m|^2 - f sum(v)) / ((1 - f) sum(v)) is an estimate of |mu|^2 / |g|^2, which is also the
cosine of the gradients of two steps: 1 where all steps want the same, 0 where they have nothing in common. It is within
a few hundredths for the gradients of a small model, and below 0 where steps undo one another.

What it does not see: matrices that Muon moves, of which no squares are kept; they are trained on the same answers.

Shapes: P tensors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def shared(
    means: Sequence[Tensor], squares: Sequence[Tensor], steps: Sequence[Tensor], betas: tuple[float, float]
) -> float | None:
    """Share of the squared gradient that the steps have in common; `means` and `squares` as AdamW keeps them, after
    `steps` steps of each tensor. None after a single step, or where every gradient was 0."""
    if not means:
        return None
    n_P = torch.stack(list(steps)).to(means[0].device, torch.float64)
    remembered_P, squares_P = 1 - betas[0] ** n_P, 1 - betas[1] ** n_P
    m_P = torch.stack(torch._foreach_norm(list(means))).double().square() / remembered_P.square()
    v_P = torch.stack(torch._foreach_norm(list(squares), ord=1)).double() / squares_P
    chance_P = (1 - betas[0]) * (2 - remembered_P) / ((1 + betas[0]) * remembered_P)
    common, whole = torch.stack([(m_P - chance_P * v_P).sum(), ((1 - chance_P) * v_P).sum()]).tolist()
    return common / whole if whole > 1e-12 * float(v_P.sum()) else None
