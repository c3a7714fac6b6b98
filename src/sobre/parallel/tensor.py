"""What the layers of a tensor-parallel model exchange (Megatron-LM, arXiv 1909.08053, 3).

Heads and inner columns are divided; what goes into them is the same in all processes of the tensor, and what comes out
is a sum over them. `shared` stands before: its gradient is the sum over what each process did with its input. `summed`
stands behind: its gradient is the same for all. The sum of torch.distributed.nn, which is deprecated, sums in the
backward pass, too: the two in a row. DTensor's styles (`parallelize_module`) would make every parameter a DTensor;
the optimizer and the files work with the numbers that are here (docs/decisions/012-who-divides-what.md).
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def shared(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """x, which is equal in all processes; its gradient is summed over them."""
    return cast(Tensor, _Shared.apply(x, group))


def summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of x over the processes."""
    return cast(Tensor, _Summed.apply(x, group))


def _sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum(gradient, ctx.group), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
