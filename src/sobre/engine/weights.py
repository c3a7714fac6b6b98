"""The weights that the engine computes with: the model's own, a copy rounded once to its dtype, or quantised.

A decoder that computes in bfloat16 over float32 masters rounds every matrix at every use: nothing beside a training
step, most of a decode step. So the engine rounds once per change of the weights. The rounding is the same, hence
the numbers are the same to the last bit. What the model keeps in float32 (norms, routers) stays in float32.
"""

import copy
from typing import Literal

import torch
from torch import nn

from sobre.engine.static import Model
from sobre.errors import EngineError
from sobre.kernels.kept import FP8
from sobre.models.decoder import Decoder
from sobre.models.quantised import quantised


def prepared(model: Model, kind: Literal["model", "int8", "int4"]) -> Model:
    """What the engine runs: `rounded`, or a quantised twin, which no `refresh` can follow."""
    if kind == "model":
        return rounded(model)
    if not isinstance(model, Decoder):
        raise EngineError(f"engine.weights={kind!r} needs a decoder with weights, not {type(model).__name__}")
    return quantised(model, kind)


def rounded(model: Model) -> Model:
    """The model itself where nothing is to be rounded; else a copy, to be kept up to date by `refresh`.

    Frozen weights that need no rounding are shared with it.
    """
    if not isinstance(model, nn.Module):
        return model
    names = [name for name, tensor in model.named_parameters() if _is_cast(name, tensor, model.dtype)]
    if not names:
        return model
    kept = {id(p): p for name, p in model.named_parameters() if not p.requires_grad and name not in names}
    twin = copy.deepcopy(model, kept).requires_grad_(False)
    for name in names:
        owner, _, own_name = name.rpartition(".")
        weight = nn.Parameter(twin.get_parameter(name).detach().to(model.dtype), requires_grad=False)
        setattr(twin.get_submodule(owner), own_name, weight)
    return twin


@torch.no_grad()
def refresh(twin: Model, model: Model) -> None:
    """Bring the copy to the model's present weights and router biases."""
    if twin is model or not (isinstance(twin, nn.Module) and isinstance(model, nn.Module)):
        return
    now = model.state_dict(keep_vars=True)
    for name, tensor in twin.state_dict(keep_vars=True).items():
        if tensor is not now[name]:
            tensor.copy_(now[name])


def _is_cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether the forward pass casts this tensor to its own dtype: matrices, but for the router's and FP8's."""
    return tensor.ndim > 1 and ".router." not in name and tensor.dtype not in (dtype, *FP8)
