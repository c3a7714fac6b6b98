"""The experts of many tokens through `choice.c`, on a CPU.

Shapes: N tokens, E experts, A active.
"""

import torch
from torch import Tensor

from sobre.kernels.native.build import call


def best_experts(scores_NE: Tensor, n_active: int) -> Tensor:
    """The same function as `reference.best_experts`."""
    experts_NA = torch.empty(len(scores_NE), n_active, dtype=torch.int64)
    call("best_experts", scores_NE.contiguous(), experts_NA, *scores_NE.shape, n_active)
    return experts_NA
