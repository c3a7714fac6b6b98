"""All processes as a grid of pipeline, learners and tensor; its groups have the run's own patience.

Rank (p * L + l) * T + t is number p of the pipeline, learner l of its part, number t of the tensor: those who talk most
are neighbours. Learners hold the same part of the model, or shards, experts and copies of it.

`init_device_mesh` would make one mesh, and slicing takes dimensions out of it. Shards and experts cut the same learners
in two ways, which private methods alone do (`_unflatten`), and its groups wait as long as is usual in torch, unless a
private field (`_timeout`) of a backend's options says otherwise.
"""

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from sobre.parallel.config import ParallelConfig


class Grid:
    """Example: grid.mesh(("copies", "experts"), cfg.experts)"""

    def __init__(self, cfg: ParallelConfig, rank: int, count: int, device: str, timeout: timedelta) -> None:
        self.device, self.timeout = device, timeout
        self.ranks_PLT = torch.arange(count).view(cfg.pipeline, -1, cfg.tensor)
        self.stage, self.learner, self.place = (int(n) for n in (self.ranks_PLT == rank).nonzero()[0])
        self.n_stages, self.n_learners, self.n_places = self.ranks_PLT.shape
        self.learners = self._mine(self.ranks_PLT.transpose(1, 2).flatten(0, 1))
        self.tensor = self._mine(self.ranks_PLT.flatten(0, 1))
        self.pipeline = self._mine(self.ranks_PLT.flatten(1, 2).t())

    def mesh(self, names: tuple[str, str], size: int) -> DeviceMesh:
        """The learners of this part as (copies, `size`), neighbours in one row."""
        ranks_PTCS = self.ranks_PLT.transpose(1, 2).unflatten(2, (-1, size))
        groups = [self._mine(ranks_PTCS.transpose(2, 3).flatten(0, 2)), self._mine(ranks_PTCS.flatten(0, 2))]
        return DeviceMesh.from_group(groups, self.device, mesh=ranks_PTCS[self.stage, self.place], mesh_dim_names=names)

    def tensor_mesh(self, shards: DeviceMesh | None) -> DeviceMesh:
        """This stage as (copies, tensor), and shards of that if there are any."""
        if shards is None:
            groups, ranks = [self.learners, self.tensor], self.ranks_PLT[self.stage]
            return DeviceMesh.from_group(groups, self.device, mesh=ranks, mesh_dim_names=("copies", "tensor"))
        ranks_CTS = self.ranks_PLT[self.stage].unflatten(0, (-1, shards.size(1))).transpose(1, 2).contiguous()
        groups = [shards.get_group(0), self.tensor, shards.get_group(1)]
        return DeviceMesh.from_group(groups, self.device, mesh=ranks_CTS, mesh_dim_names=("copies", "tensor", "shards"))

    def holders(self, n_shards: int) -> dist.ProcessGroup:
        """The processes that hold one copy of this part between them: `n_shards` learners times the tensor."""
        return self._mine(self.ranks_PLT.unflatten(1, (-1, n_shards)).flatten(2, 3).flatten(0, 1))

    def ends(self) -> dist.ProcessGroup | None:
        """The first and the last of this process's pipeline; None for one between them."""
        ranks_E2 = self.ranks_PLT[[0, -1]].flatten(1, 2).t()
        group, _ = dist.new_subgroups_by_enumeration(ranks_E2.tolist(), timeout=self.timeout)
        return group

    def _mine(self, ranks_XY: Tensor) -> dist.ProcessGroup:
        """The group that this process is in, of groups that all processes make; those of all are the whole group."""
        if len(ranks_XY) == 1:
            assert dist.group.WORLD is not None
            return dist.group.WORLD
        rows: Sequence[list[int]] = ranks_XY.tolist()
        group, _ = dist.new_subgroups_by_enumeration(rows, timeout=self.timeout)
        assert group is not None, "the groups hold every process"
        return group
