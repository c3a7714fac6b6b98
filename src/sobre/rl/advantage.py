"""From rewards to advantages: how much better than its group an answer was.

Shapes: X groups (problems), Y answers per group.
"""

from torch import Tensor

from sobre.rl.config import Advantage


def advantages(rewards_XY: Tensor, kind: Advantage) -> Tensor:
    """Return advantages_XY.

    centred: r - mean. Dr. GRPO (arXiv 2503.20783) and DeepSeek-V3.2 (2512.02556): dividing gives hard and easy
    problems the same pull as balanced ones, so it is left out.
    standardised: (r - mean) / std. DeepSeekMath (2402.03300, 4.1.2). The standard deviation is the unbiased one, as in
    common implementations, but without their small constant: a group without variance gets 0 instead of noise.
    leave_one_out: r - the mean of the others = Y / (Y - 1) (r - mean). RLOO (2402.14740).
    """
    flat_X1 = flat_groups(rewards_XY)[:, None]
    centred_XY = rewards_XY - rewards_XY.mean(1, keepdim=True)
    centred_XY = centred_XY.masked_fill(flat_X1, 0.0)  # the mean of equal floats may be off
    if kind == "centred":
        return centred_XY
    if kind == "leave_one_out":
        n = rewards_XY.shape[1]
        return centred_XY * (n / (n - 1))
    return (centred_XY / rewards_XY.std(1, keepdim=True)).masked_fill(flat_X1, 0.0)


def flat_groups(rewards_XY: Tensor) -> Tensor:
    """Which groups (X, bool) have equal rewards throughout."""
    return rewards_XY.amax(1) == rewards_XY.amin(1)
