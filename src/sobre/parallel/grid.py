"""All processes as a grid: neighbours share a row. Its groups have the run's own patience."""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh


def grid(device: str, n_processes: int, names: tuple[str, str], n_columns: int, timeout: timedelta) -> DeviceMesh:
    """A mesh of two dimensions, of which `names` are the columns' and the rows' group; a row has `n_columns`."""
    ranks = torch.arange(n_processes).unflatten(0, (-1, n_columns))
    groups = [_mine(ranks.t().tolist(), timeout), _mine(ranks.tolist(), timeout)]
    return DeviceMesh.from_group(groups, device, mesh=ranks, mesh_dim_names=names)


def _mine(ranks: list[list[int]], timeout: timedelta) -> dist.ProcessGroup:
    """The group that this process is in, of groups that all processes make."""
    group, _ = dist.new_subgroups_by_enumeration(ranks, timeout=timeout)
    assert group is not None, "the groups hold every process"
    return group
