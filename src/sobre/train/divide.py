"""Divide a model over the processes of a run: FSDP around its layers, and each process's experts in its MoE layers.

All processes build the same whole model; afterwards each holds its part, and the modules put together what a forward
or backward pass needs. What a layer does is left as it is.
"""

from typing import cast

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from sobre.errors import ConfigError
from sobre.models.config import ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.models.moe import MoE
from sobre.optim.roles import role_of
from sobre.parallel.config import ParallelConfig
from sobre.parallel.dispatch import ExpertDispatch
from sobre.parallel.division import Division, Part, here
from sobre.parallel.grid import grid
from sobre.runtime.processes import Processes

EXPERTS = ("gate_EFD", "up_EFD", "down_EDF")


def divide(model: Decoder, cfg: ParallelConfig, processes: Processes) -> Division | None:
    """Divide `model` in place; None for one process on its own."""
    cfg.check(processes.count)
    cfg.check_experts(n_experts(model.cfg))
    if cfg.is_divided and model.lora is not None:
        raise ConfigError(
            f"parallel.shards={cfg.shards}, experts={cfg.experts}: adapters train with whole weights only"
        )
    group = processes.data_group
    if group is None:
        return None
    parts = _divide_experts(model, cfg, processes) if cfg.experts > 1 else {}
    shards = None
    if cfg.shards_of(processes.count) > 1:
        tables = [name for name in dict(model.named_parameters()) if role_of(name) == "table"]
        shards = _shard(model, cfg, processes, {model.get_parameter(name) for name in (*parts, *tables)})
        parts |= {
            name: Part(parameter.device_mesh, tuple(parameter.placements), parameter.shape, here(parameter))
            for name, parameter in model.named_parameters()
            if isinstance(parameter, DTensor)
        }
    return Division(group, parts, shards, accumulates=cfg.zero == 1)


def n_experts(cfg: ModelConfig) -> int:
    """Routed experts of a layer; 0 in a dense model."""
    return cfg.ffn.n_experts if isinstance(cfg.ffn, MoEConfig) else 0


def _divide_experts(model: Decoder, cfg: ParallelConfig, processes: Processes) -> dict[str, Part]:
    """Keep this process's experts of every layer, whole ones, and let tokens travel."""
    device = model.embed.weight.device.type
    mesh = grid(device, processes.count, ("copies", "experts"), cfg.experts, processes.timeout)
    dispatch = ExpertDispatch(mesh.get_group("experts"))
    parts = {}
    for name, module in model.named_modules():
        if isinstance(module, MoE):
            module.dispatch = dispatch
            for leaf in EXPERTS:
                whole = cast(nn.Parameter, getattr(module, leaf))
                mine = nn.Parameter(whole.detach().chunk(cfg.experts)[mesh.get_local_rank("experts")].clone())
                parts[f"{name}.{leaf}"] = Part(mesh, (Replicate(), Shard(0)), whole.shape, mine.detach())
                setattr(module, leaf, mine)
    return parts


def _shard(model: Decoder, cfg: ParallelConfig, processes: Processes, ours: set[nn.Parameter]) -> dist.ProcessGroup:
    """FSDP around each layer and the rest; `ours` (divided by hand, or tables, which stay whole) are left alone.

    Gradients are sums: the loss is divided before.
    """
    shards = cfg.shards_of(processes.count)
    device = model.embed.weight.device.type
    mesh = grid(device, processes.count, ("copies", "shards"), shards, processes.timeout)
    layers = [*model.layers, *([model.mtp.block] if model.mtp is not None else [])]
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=cfg.zero == 3, ignored_params=ours)
    # embedding, norm and head stay together until the backward pass: losses and MTP use them outside of `forward`
    fully_shard(model, mesh=mesh, reshard_after_forward=False, ignored_params=ours)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return mesh.get_group("shards")
