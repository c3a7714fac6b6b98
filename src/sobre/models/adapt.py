"""Adapters on a model: put on, counted, merged into the weights.

An adapted model has its adapters as modules beside the frozen weights (`layers.3.attn.q.lora`), so that training,
sampling and evaluation run the same forward pass, and the log-probabilities of sampler and trainer agree. Only the
adapters have gradients and optimizer state. Merging adds scale * up down to each weight, in float32, rounded once.
"""

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from sobre.errors import ConfigError
from sobre.models.config import AdaptedPart, LoraConfig
from sobre.models.decoder import Decoder
from sobre.models.kept import refuse_kept
from sobre.models.layers import Linear
from sobre.models.lora import ExpertsLoRA, LoRA, StackedLoRA
from sobre.models.moe import MoE, local_dispatch

STACKED = {"gate_EFD": "gate", "up_EFD": "up", "down_EDF": "down"}
"""Weights of the experts, and the adapter of each."""


def adaptable(model: Decoder, parts: Iterable[AdaptedPart]) -> list[str]:
    """Names of the weights that belong to these parts: layers.0.attn.q.weight, layers.1.ffn.gate_EFD."""
    return [name for name, part in _weights(model) if part in set(parts)]


def _weights(model: Decoder) -> Iterator[tuple[str, AdaptedPart]]:
    for name, module in model.named_modules():
        if not name.startswith("layers.") or ".index." in name:
            continue
        if isinstance(module, MoE):
            yield from ((f"{name}.{leaf}", "experts") for leaf in STACKED)
        elif isinstance(module, Linear):
            yield f"{name}.weight", "attention" if ".attn." in name else "dense"


def adapt(model: Decoder, cfg: LoraConfig, *, seed: int, names: Iterable[str] | None = None) -> None:
    """Freeze the weights and put adapters beside those of `cfg.parts`, or beside the weights `names`.

    Raises ConfigError when there is nothing to adapt, or the experts are spread over processes.
    """
    refuse_kept(model, "an adapter")
    chosen = list(names) if names is not None else adaptable(model, cfg.parts)
    if not chosen:
        raise ConfigError(f"lora.parts={list(cfg.parts)}: the model has none of them")
    assert model.lora is None, "the model is adapted already; merge it first"
    model.requires_grad_(False)
    model.lora = cfg
    generator = torch.Generator().manual_seed(seed)
    for name in chosen:
        at, _, leaf = name.rpartition(".")
        module = model.get_submodule(at)
        new: LoRA | StackedLoRA
        if isinstance(module, MoE):
            if module.dispatch is not local_dispatch:
                raise ConfigError(f"the experts of {at} are spread over processes; adapters on experts work in one")
            n_experts, n_out, n_in = module.get_parameter(leaf).shape
            new = StackedLoRA(n_experts, n_in, n_out, cfg.rank, cfg.scale)
            module.lora = module.lora or ExpertsLoRA()
            setattr(module.lora, STACKED[leaf], new)
            down = new.down_ERI
        else:
            assert isinstance(module, Linear)
            n_out, n_in = module.weight.shape
            new = module.lora = LoRA(n_in, n_out, cfg.rank, cfg.scale)
            down = new.down_RI
        nn.init.uniform_(down, -(n_in**-0.5), n_in**-0.5, generator=generator)
        new.to(model.embed.weight.device)


def adapters(model: Decoder) -> dict[str, LoRA | StackedLoRA]:
    """Every adapter by the name of the weight that it adds to."""
    found: dict[str, LoRA | StackedLoRA] = {}
    for name, module in model.named_modules():
        if isinstance(module, MoE) and module.lora is not None:
            every = ((leaf, getattr(module.lora, field)) for leaf, field in STACKED.items())
            found |= {f"{name}.{leaf}": lora for leaf, lora in every if lora is not None}
        elif isinstance(module, Linear) and module.lora is not None:
            found[f"{name}.weight"] = module.lora
    return found


@torch.no_grad()
def merged_state(model: Decoder) -> dict[str, Tensor]:
    """The state of the model with its adapters merged: new tensors for what is adapted, the model's own else."""
    found = adapters(model)
    state = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if ".lora." not in name}
    return state | {name: _sum(state[name], lora) for name, lora in found.items()}


@torch.no_grad()
def merge(model: Decoder) -> None:
    """Add the adapters to the weights, take them off, and let every weight learn again."""
    for name, lora in adapters(model).items():
        weight = model.get_parameter(name)
        weight.copy_(_sum(weight, lora))
    for module in model.modules():
        if isinstance(module, Linear | MoE):
            module.lora = None
    model.lora = None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".index." not in name)


def _sum(weight: Tensor, lora: LoRA | StackedLoRA) -> Tensor:
    return (weight.float() + lora.delta()).to(weight.dtype)


def sharing_copy(model: Decoder) -> Decoder:
    """A copy with weights of its own where they learn, and the same tensors where they are frozen."""
    frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, frozen)
