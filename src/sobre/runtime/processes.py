"""The processes of one run, as torchrun starts them: who is first, and how they agree.

Every process runs the same story in the same order. What the clock, the disk or the user decides is decided by the
first process and told to the others (`decide`), so all take the same branch; an error there reaches all of them. One
process on its own needs no process group and pays nothing.
"""

import copy
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from sobre.errors import RunError, SobreError
from sobre.runtime import flight
from sobre.runtime.heartbeat import KEEPER, Heartbeat, within

T = TypeVar("T")
WAIT = timedelta(hours=12)
"""How long the others wait for what the first process does alone, such as an examination."""
PATIENCE = timedelta(minutes=30)
"""How long a process waits for another inside a step, if nothing else is said."""
GRACE_S = 5.0
"""After a failed exchange: how long the processes wait for each other's word on it."""
LEAVE_S = 20
"""How long a process that has failed may take to end: threads of torch may wait for others, and do so at the exit."""


class Processes:
    """Example: folder = processes.decide(lambda: claim_a_folder())"""

    def __init__(
        self,
        rank: int = 0,
        count: int = 1,
        *,
        per_node: int = 1,
        group: dist.ProcessGroup | None = None,
        saving_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.rank, self.count, self.per_node = rank, count, per_node
        self._group = group
        self.timeout = PATIENCE
        self._store: dist.Store | None = None
        self._step_group: dist.ProcessGroup | None = None
        self._heartbeat: Heartbeat | None = None
        self._record: Path | None = None
        """Where the flight record goes."""
        self.saving_group = saving_group
        """Of the threads that write states while training goes on; None for one process on its own."""

    @classmethod
    def start(cls, timeout: timedelta = PATIENCE) -> "Processes":
        """Join the others when torchrun started this process; else stand alone. `timeout`: see `PATIENCE`."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        per_node = int(os.environ["LOCAL_WORLD_SIZE"])
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        flight.keep()
        store, rank, count = next(dist.rendezvous("env://"))
        if count == per_node:
            # torchrun keeps its store for the next attempt, where the addresses of dead processes would be found
            store = dist.PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
        control = dist.new_group(backend="gloo", timeout=WAIT)
        saving = dist.new_group(backend="gloo", timeout=WAIT)
        found = cls(rank, count, per_node=per_node, group=control, saving_group=saving)
        found.timeout, found._store = timeout, store
        if backend != "gloo":
            found._step_group = dist.new_group(backend="gloo", timeout=timeout)
        silence_s = timeout.total_seconds() + 2 * GRACE_S  # later than the exchanges of a step, which know more
        found._heartbeat = Heartbeat(store, rank=rank, count=count, silence_s=silence_s, on_silence=found._give_up)
        return found

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
    def prompt(self) -> "Processes":
        """The same processes with the patience of a step: for what none of them does alone for long."""
        found = copy.copy(self)
        if self._group is not None:
            found._group = self._step_group or dist.group.WORLD
        return found

    @property
    def saving(self) -> "Processes":
        """The same processes over a group of their own: for the threads that write states while training goes on."""
        found = copy.copy(self)
        found._group = self.saving_group
        return found

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
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=self._step_group or dist.group.WORLD)
        return [bool(flag) for flag in raised.tolist()]

    @contextmanager
    def watched(self, record: Path) -> Iterator[None]:
        """What fails inside is told to the others; a failed exchange becomes a RunError that names who is missing, and
        the folder `record` gets what each process was doing then. A process that fails ends within `LEAVE_S`."""
        if self._store is None:
            yield
            return
        self._record = record
        flight.tell_watchdog(record)
        flight.leave_stacks(record, self.rank)
        try:
            yield
            flight.nothing_to_tell(record, self.rank)
        except Exception as error:
            _end_within(LEAVE_S)
            if not _is_exchange(error):
                self._store.set(f"failed/{self.rank}", f"{type(error).__name__}: {error}")
                raise
            flight.write(record, self.rank)
            reason = str(error).strip().splitlines()[0]
            found = f"process {self.rank} waited in vain ({reason}): {self._culprits()}"
            raise RunError(f"{found}; what each was doing: {record}") from error

    def _culprits(self) -> str:
        """Who failed by himself or says nothing; asked of the store, which may be out of reach itself."""
        try:
            return within(2 * GRACE_S, self._ask_for_culprits)
        except (TimeoutError, dist.DistError):
            return KEEPER

    def _ask_for_culprits(self) -> str:
        assert self._store is not None
        self._store.set(f"failed/{self.rank}", "")
        end = time.monotonic() + GRACE_S
        silent = list(range(self.count))
        while silent and time.monotonic() < end:
            silent = [rank for rank in silent if not self._store.check([f"failed/{rank}"])]
            time.sleep(0.1)
        told = {rank: self._store.get(f"failed/{rank}").decode() for rank in range(self.count) if rank not in silent}
        found = [f"process {rank} failed: {text}" for rank, text in told.items() if text]
        found += [f"process {rank} does not answer: it hangs or is dead" for rank in silent]
        return "; ".join(found) or "all processes answer, so the network or parallel.timeout_s is too slow"

    def _give_up(self, silent: str) -> None:
        """End this process, whose main thread waits for what will not come: nothing but the end frees it from gloo."""
        signal.alarm(LEAVE_S)  # the disk may be behind the network, too
        found = f"process {self.rank} waits in vain: {silent}"
        if self._record is not None:
            flight.write(self._record, self.rank)
            flight.write_stacks(self._record, self.rank)
            found += f"; what each was doing: {self._record}"
        print(f"sobre: {found}", file=sys.stderr, flush=True)
        os._exit(1)

    def stop(self) -> None:
        """Leave the group, once nothing is left to say."""
        if self._heartbeat is not None:
            self.gather(None)  # who leaves gives no more signs
            self._heartbeat.stop()
            dist.destroy_process_group()

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of the items: consecutive, and as many in every part, give or take one."""
        begin, end = (len(items) * rank // self.count for rank in (self.rank, self.rank + 1))
        return list(items[begin:end])


def _end_within(seconds: int) -> None:
    """Let the kernel end this process if it does not end by itself."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


def _is_exchange(error: Exception) -> bool:
    """Whether it is a failure to exchange something with another process; gloo's errors have no class of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
