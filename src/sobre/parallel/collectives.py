"""Sums over processes in as few messages as there are element types; of tables, the rows that were read."""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over(group: dist.ProcessGroup, tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the processes of the group.

    Torch's `all_reduce_coalesced` is deprecated, and sums without a word what has other shapes elsewhere.
    """
    by_type: dict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_type[tensor.dtype].append(tensor)
    for same in by_type.values():
        flat = torch.cat([tensor.flatten() for tensor in same])
        dist.all_reduce(flat, group=group)
        for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(part.view_as(tensor))


def sum_rows_over(group: dist.ProcessGroup, grad: Tensor) -> Tensor:
    """The sum of a row-sparse gradient over the processes of the group, coalesced; the same bits in all of them."""
    rows_U, grad_UW = grad.coalesce().indices()[0], grad.coalesce().values()
    sizes = [torch.zeros(1, dtype=torch.int64, device=grad.device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, rows_U.new_tensor([len(rows_U)]), group=group)
    most = max(int(size) for size in sizes)
    filler = most - len(rows_U)
    rows = [rows_U.new_empty(most) for _ in sizes]
    values = [grad_UW.new_empty(most, grad_UW.shape[1]) for _ in sizes]
    dist.all_gather(rows, torch.cat([rows_U, rows_U.new_zeros(filler)]), group=group)
    dist.all_gather(values, torch.cat([grad_UW, grad_UW.new_zeros(filler, grad_UW.shape[1])]), group=group)
    rows_U = torch.cat([part[: int(size)] for part, size in zip(rows, sizes, strict=True)])
    grad_UW = torch.cat([part[: int(size)] for part, size in zip(values, sizes, strict=True)])
    return torch.sparse_coo_tensor(rows_U[None], grad_UW, grad.shape, check_invariants=False).coalesce()
