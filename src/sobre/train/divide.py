"""Divide a model over the processes of a run: each process's experts and heads, and FSDP around the layers.

All processes build the same whole model; afterwards each holds its part, and the modules put together what a forward
or backward pass needs. What a layer does is left as it is.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from sobre.errors import ConfigError
from sobre.models.decoder import Block, Decoder
from sobre.models.moe import MoE
from sobre.optim.roles import role_of
from sobre.parallel.config import ParallelConfig
from sobre.parallel.deep_ep import choose_dispatch
from sobre.parallel.division import Division, Part, here
from sobre.parallel.grid import Grid
from sobre.parallel.pipeline import Pipeline
from sobre.runtime.processes import Processes
from sobre.train.heads import divide_heads
from sobre.train.stages import copies, cut

ENDS = ("embed", "norm", "head")
EXPERTS = ("gate_EFD", "up_EFD", "down_EDF")


def divide(model: Decoder, cfg: ParallelConfig, processes: Processes) -> Division | None:
    """Divide `model` in place; None for one process on its own."""
    cfg.check(processes.count)
    cfg.check_model(model.cfg)
    if cfg.is_divided and model.lora is not None:
        raise ConfigError(f"lora with{cfg.flags}: adapters train with whole weights only; leave that out")
    if processes.data_group is None:
        return None
    device = model.device.type
    grid = Grid(cfg, processes.rank, processes.count, device, processes.timeout)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    stages, homes = cut(model, cfg, grid.stage) if cfg.pipeline > 1 else ({}, {})
    parts = _divide_experts(model, cfg, grid) if cfg.experts > 1 else {}
    dims, partial = divide_heads(model, grid) if cfg.tensor > 1 else ({}, set[str]())
    mesh, n_shards = None, cfg.shards_of(processes.count)
    if n_shards > 1:
        mesh = grid.mesh(("copies", "shards"), n_shards)
        tables = [name for name in dict(model.named_parameters()) if role_of(name) == "table"]
        _shard(model, cfg, mesh, {model.get_parameter(name) for name in (*parts, *tables)}, stages)
    if mesh is not None or dims:
        holders = grid.holders(n_shards)
        mesh = mesh if cfg.tensor == 1 else grid.tensor_mesh(mesh)
        assert mesh is not None
        for name, parameter in model.named_parameters():
            if isinstance(parameter, DTensor) or name in dims:
                cuts: list[Placement] = [Replicate()]
                if cfg.tensor > 1:
                    cuts.append(Shard(dims[name]) if name in dims else Replicate())
                if n_shards > 1:
                    cuts.append(Shard(0))
                parts[name] = Part(mesh, tuple(cuts), shapes[name], here(parameter), holders)
    tensor = grid.tensor if cfg.tensor > 1 else None
    context = grid.mesh(("copies", "context"), cfg.context).get_group("context") if cfg.context > 1 else None
    accumulates = cfg.zero == 1
    found = Division(grid.learners, parts, tensor, frozenset(partial), context, accumulates=accumulates, homes=homes)
    if not stages:
        return found
    pipeline = Pipeline(grid.pipeline, cfg.schedule, stages)
    doubled = copies(model.cfg) and pipeline.last != 0
    return replace(found, pipeline=pipeline, ends=grid.ends() if doubled else None)


def _divide_experts(model: Decoder, cfg: ParallelConfig, grid: Grid) -> dict[str, Part]:
    """Keep this process's experts of every layer, whole ones, and let tokens travel."""
    mesh = grid.mesh(("copies", "experts"), cfg.experts)
    group, width = mesh.get_group("experts"), model.cfg.d_model
    dispatch = choose_dispatch(cfg.dispatch, group, device=grid.device, dtype=model.dtype, width=width)
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


def _shard(
    model: Decoder,
    cfg: ParallelConfig,
    mesh: DeviceMesh,
    ours: set[nn.Parameter],
    stages: Mapping[int, nn.Module],
) -> None:
    """FSDP around each layer and the rest; `ours` (divided experts, and tables, which stay whole) are left alone.

    Gradients are sums: the loss is divided before. In a pipeline the rest is that of each stage; what stands at the
    ends is whole, since two stages of one process may need it.
    """
    layers = [module for module in model.modules() if isinstance(module, Block)]
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=cfg.zero == 3, ignored_params=ours)
    if stages:
        ends = {model.get_parameter(name) for name in dict(model.named_parameters()) if name.split(".")[0] in ENDS}
        ours = ours | ends
    # embedding, norm and head stay together until the backward pass: losses and MTP use them outside of `forward`
    for whole in stages.values() or [model]:
        fully_shard(whole, mesh=mesh, reshard_after_forward=False, ignored_params=ours)
        for module in whole.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
