"""The processes of one run, as torchrun starts them: who is first, and how they agree.

Every process runs the same story in the same order. What the clock, the disk or the user decides is decided by the
first process and told to the others (`decide`), so all take the same branch; an error there reaches all of them. One
process on its own needs no process group and pays nothing.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from sobre.errors import RunError, SobreError

T = TypeVar("T")
WAIT = timedelta(hours=12)
"""How long the others wait for what the first process does alone, such as an examination."""


class Processes:
    """Example: folder = processes.decide(lambda: claim_a_folder())"""

    def __init__(self, rank: int = 0, count: int = 1, *, per_node: int = 1, group: dist.ProcessGroup | None = None):
        self.rank, self.count, self.per_node = rank, count, per_node
        self._group = group

    @classmethod
    def start(cls) -> "Processes":
        """Join the others when torchrun started this process; else stand alone."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        per_node = int(os.environ["LOCAL_WORLD_SIZE"])
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store, rank, count = next(dist.rendezvous("env://"))
        if count == per_node:
            # torchrun keeps its store for the next attempt, where the addresses of dead processes would be found
            store = dist.PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count)
        control = dist.new_group(backend="gloo", timeout=WAIT)
        return cls(rank, count, per_node=per_node, group=control)

    @staticmethod
    def is_restart() -> bool:
        """Whether torchrun's agent started this process again after a failure."""
        return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def data_group(self) -> dist.ProcessGroup | None:
        """The group over which tensors of the training step are summed; None for one process on its own."""
        return None if self._group is None else dist.group.WORLD

    @property
    def control_group(self) -> dist.ProcessGroup | None:
        """The group that waits as long as it takes, for files and decisions; None for one process on its own."""
        return self._group

    @property
    def n_nodes(self) -> int:
        return self.count // self.per_node

    def decide(self, choose: Callable[[], T]) -> T:
        """What `choose` returns in the first process, in every process; what it raises is raised in every process."""
        if self._group is None:
            return choose()
        told: list[Any] = [None, None]
        error: Exception | None = None
        if self.is_first:
            try:
                told[0] = choose()
            except Exception as raised:  # the others would wait for ever
                error = raised
                told[1] = raised if isinstance(raised, SobreError) else RunError(f"the first process failed: {raised}")
        dist.broadcast_object_list(told, src=0, group=self._group)
        if error is not None:
            raise error
        if told[1] is not None:
            raise told[1]
        found: T = told[0]
        return found

    def gather(self, value: T) -> list[T]:
        """The value of every process, in order of rank, in every process."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._group)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any process raised it."""
        if self._group is None:
            return list(flags)
        raised = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=self._group)
        return [bool(flag) for flag in raised.tolist()]

    def barrier(self) -> None:
        """Wait for all."""
        self.any(False)

    def stop(self) -> None:
        """Leave the group, once nothing is left to say."""
        if self._group is not None:
            dist.destroy_process_group()

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of the items: consecutive, and as many in every part, give or take one."""
        begin, end = (len(items) * rank // self.count for rank in (self.rank, self.rank + 1))
        return list(items[begin:end])
