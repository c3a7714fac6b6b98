"""The layers of a model over processes, one after the other, and micro-batches through them.

Orders and messages are those of torch.distributed.pipelining. A stage is a module that gets what the stage before gave
and the number of the micro-batch; what that means is its own affair. In 1F1B a process has one stage, in the others
two: `interleaved` and `zero-bubble` deal them out in rounds, and the V of `zbv` (arXiv 2401.10241) and `dualpipev`
(after DualPipe, arXiv 2412.19437, 3.2.1) comes back, so that the first process has the last stage, too.

Shapes: N tokens of a micro-batch, D width.
"""

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.distributed.pipelining.schedules import PipelineScheduleMulti

from sobre.parallel.config import Schedule

TWO_EACH: dict[str, Callable[..., PipelineScheduleMulti]] = {
    "interleaved": ScheduleInterleaved1F1B,
    "zero-bubble": ScheduleInterleavedZeroBubble,
    "zbv": ScheduleZBVZeroBubble,
    "dualpipev": ScheduleDualPipeV,
}


class Pipeline:
    """Example: pipeline.run(8, like_ND, loss_of)"""

    def __init__(self, group: dist.ProcessGroup, schedule: Schedule, stages: Mapping[int, nn.Module]) -> None:
        self.group, self.schedule, self.stages = group, schedule, stages
        self.size = dist.get_world_size(group)
        self.n_stages = self.size * (1 if schedule == "1f1b" else 2)
        self._ready: tuple[tuple[int, torch.Size], Schedule1F1B | PipelineScheduleMulti] | None = None
        self._loss_of: Callable[[Tensor, int], Tensor] | None = None

    @property
    def last(self) -> int:
        """The process that has the last stage."""
        return 0 if self.schedule in ("zbv", "dualpipev") else self.size - 1

    def n_micro(self, wanted: int) -> int:
        """How many micro-batches the schedule needs, to take so many."""
        if self.schedule in ("1f1b", "dualpipev"):
            return max(wanted, self.n_stages)
        if self.schedule in ("interleaved", "zero-bubble") and wanted > self.size:
            return -(-wanted // self.size) * self.size
        return wanted

    def run(self, n_micro: int, like_ND: Tensor, loss_of: Callable[[Tensor, int], Tensor]) -> None:
        """Forward and backward of all micro-batches; `like_ND` has the shape of what travels, `loss_of` is asked for
        the loss of (what the last stage gave, number of the micro-batch) in the process that has the last stage."""
        key = n_micro, like_ND.shape
        if self._ready is None or self._ready[0] != key:
            self._ready = key, self._schedule(n_micro, like_ND)
        self._loss_of = loss_of
        micro = torch.arange(n_micro, device=like_ND.device)
        first = (micro,) if 0 in self.stages else ()
        self._ready[1].step(*first, micro=micro, target=micro, return_outputs=False)

    def _schedule(self, n_micro: int, like_ND: Tensor) -> Schedule1F1B | PipelineScheduleMulti:
        travelling = torch.empty(like_ND.shape, dtype=like_ND.dtype, device="meta", requires_grad=True)
        number = torch.empty(1, dtype=torch.int64, device="meta")
        stages = [
            PipelineStage(
                module,
                index,
                self.n_stages,
                like_ND.device,
                input_args=travelling if index else number,
                output_args=travelling,
                group=self.group,
            )
            for index, module in self.stages.items()
        ]
        if self.schedule == "1f1b":
            return Schedule1F1B(stages[0], n_micro, loss_fn=self._loss, scale_grads=False)
        return TWO_EACH[self.schedule](stages, n_micro, loss_fn=self._loss, scale_grads=False)

    def _loss(self, given: Tensor, micro: Tensor) -> Tensor:
        assert self._loss_of is not None, "set by `run`"
        return self._loss_of(given, int(micro))


def stages_of(rank: int, size: int, schedule: Schedule) -> list[int]:
    """The numbers of the stages that process `rank` of a pipeline has."""
    if schedule == "1f1b":
        return [rank]
    if schedule in ("zbv", "dualpipev"):
        return [rank, 2 * size - 1 - rank]
    return [rank, size + rank]
