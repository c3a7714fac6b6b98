"""Whether the model in training sends a token where the sampler sent it: beside a batch's stream `engine_routes_LNA`.

Shapes: N tokens, L routing layers, A active experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sobre.train.batch import Batch

ENGINE_ROUTES = "engine_routes_LNA"
"""The stream with the experts that the sampler chose, of real tokens alone."""


def differing(a_LNA: Tensor, b_LNA: Tensor) -> Tensor:
    """Which tokens (N, bool) visit other experts in any layer; the order of the experts means nothing."""
    return (a_LNA.sort(-1).values != b_LNA.sort(-1).values).any(-1).any(0)


def is_compared(batch: Batch) -> bool:
    """Whether the sampler left its choice, and the model has one of its own: under replay it has none."""
    return ENGINE_ROUTES in batch.streams and batch.routes_LNA is None


def rerouted(routes: Sequence[Tensor], batch: Batch, first: int = 0) -> Tensor | None:
    """Which real tokens (N, bool) visit other experts than the sampler chose, in any of some routing layers.

    `routes` has experts_NA of each; `first` is the place of the first among those of the whole model. None where there
    is nothing to compare.
    """
    if not routes or not is_compared(batch):
        return None
    return differing(torch.stack(list(routes)), batch.streams[ENGINE_ROUTES][first : first + len(routes)])
