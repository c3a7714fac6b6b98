"""Compilation by region: the parts of a layer as one compiled function each (torch.compile), the same for all layers.

A region is what plain torch computes: norm, attention and sum; norm, dense feed-forward and sum; and in a layer with
experts norm, shared experts and the router's scores. Inside it the formulas of kernels/reference.py stand, for the
compiler fuses them itself (`select.COMPILED`). The choice of experts and what they answer are no region: their kernels
are by hand already, how many rows each gets is not known before, and where layers are computed again the choice is
given and not made, which would be another graph. A region is compiled whole (`fullgraph`), for one length of
rows: steps whose sequences differ in length run as they are.
"""

from collections.abc import Callable
from typing import Any

import torch

from sobre.errors import ConfigError
from sobre.models.decoder import Block, Decoder, Parts
from sobre.models.layers import Linear
from sobre.models.mla import MLA


def compile_layers(model: Decoder, backend: str = "inductor") -> None:
    """From now on training runs the model's layers by region. Raises ConfigError for a model that cannot."""
    why = _why_not(model)
    if why:
        raise ConfigError(f"compile=true: {why}")
    model.parts = Parts(*(_compiled(region, backend) for region in (Block.attend, Block.feed, Block.score)))


def _compiled(region: Callable[..., Any], backend: str) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(region, backend=backend, fullgraph=True, dynamic=False)
    return compiled


def _why_not(model: Decoder) -> str | None:
    for module in model.modules():
        if isinstance(module, Linear) and module.precision != "auto":
            return f"precision={module.precision} multiplies in kernels of its own, which no compiler sees into"
        if isinstance(module, MLA) and module.cfg.indexer:
            return "sparse attention is decided by the longest context"
    if any(type(block) is not Block for block in model.layers):
        return "its layers are divided over processes"
    return None
