"""From rewards to advantages: how much better than its group an answer was.

Shapes: X groups (problems), Y answers per group.
"""

from typing import Literal

from torch import Tensor

Kind = Literal["grpo", "grpo_published"]


def advantages(rewards_XY: Tensor, kind: Kind) -> Tensor:
    """Return advantages_XY: r - mean ("grpo"), or that over the group's standard deviation ("grpo_published").

    DeepSeekMath (arXiv 2402.03300, 4.1.2) divides by std. Here it is the unbiased one, as in common implementations,
    but without their small constant: a group without variance gets 0 instead of noise. Dividing gives hard and easy
    problems the same pull as balanced ones; DeepSeek-V3.2 and Dr. GRPO (2503.20783) leave it out.
    """
    centred_XY = rewards_XY - rewards_XY.mean(1, keepdim=True)
    centred_XY = centred_XY.masked_fill(flat_groups(rewards_XY)[:, None], 0.0)  # the mean of equal floats may be off
    if kind == "grpo":
        return centred_XY
    std_X1 = rewards_XY.std(1, keepdim=True)
    return (centred_XY / std_X1).masked_fill(flat_groups(rewards_XY)[:, None], 0.0)


def flat_groups(rewards_XY: Tensor) -> Tensor:
    """Which groups (X, bool) have equal rewards throughout."""
    return rewards_XY.amax(1) == rewards_XY.amin(1)
