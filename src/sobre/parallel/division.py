"""Which part of every parameter is here, and what follows: how gradients are summed, their norm, the whole again.

A parameter is divided by FSDP (torch's DTensor, which sums its own gradient), or by hand (the experts or the heads of
this process, whose gradient is summed over the copies of them), or both, or whole in every process. Optimizer and files
work with the part that is here (`here`); `Part.of_whole` says to torch's checkpoint and to whoever needs the whole
which part it is.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from sobre.parallel.collectives import sum_over
from sobre.parallel.matrices import Box, turn_whole
from sobre.parallel.pipeline import Pipeline

EMBEDDING = "embed.weight"
"""What both ends of a pipeline may need: the last for MTP, or as its head."""


@torch.no_grad()
def here(tensor: Tensor) -> Tensor:
    """The numbers of a tensor that are in this process, in place: its part, or the rows of a sparse gradient."""
    if tensor.is_sparse:
        return tensor.values()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@dataclass(frozen=True)
class Part:
    """Where one parameter lies; `shape` is that of the whole."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    shape: torch.Size
    here: Tensor
    """The numbers in this process, in place."""
    holders: dist.ProcessGroup | None = None
    """The processes that hold a matrix between them; None when matrices are whole where they lie."""

    @property
    def n_copies(self) -> int:
        """Processes that hold the same numbers."""
        sizes = zip(self.placements, self.mesh.shape, strict=True)
        return torch.Size(size for placement, size in sizes if isinstance(placement, Replicate)).numel()

    @property
    def is_first_copy(self) -> bool:
        """Whether this process is the first of those."""
        dims = enumerate(self.placements)
        return all(self.mesh.get_local_rank(dim) == 0 for dim, placement in dims if isinstance(placement, Replicate))

    @property
    def first_row(self) -> int:
        """Where the numbers here begin in the whole."""
        return self._spans(self.coordinate)[0].start

    @property
    def coordinate(self) -> Sequence[int]:
        """Where this process is in the mesh."""
        found = self.mesh.get_coordinate()
        assert found is not None, "a part lies in this process"
        return found

    @property
    def copies(self) -> dist.ProcessGroup:
        """Those processes; the first dimension of every mesh here."""
        return self.mesh.get_group(0)

    def cut(self, whole: Tensor) -> Tensor:
        """The part of a whole tensor that belongs here."""
        for dim, span in enumerate(self._spans(self.coordinate)):
            whole = whole.narrow(dim, span.start, span.stop - span.start)
        return whole

    @cached_property
    def boxes(self) -> list[Box]:
        """What each of the holders has of a matrix."""
        assert self.holders is not None
        coordinates = [(self.mesh.mesh == rank).nonzero()[0] for rank in dist.get_process_group_ranks(self.holders)]
        return [Box(*self._spans(coordinate.tolist())) for coordinate in coordinates]

    def _spans(self, coordinate: Sequence[int]) -> list[slice]:
        """Of each dimension of the whole: where the part of one process of the mesh lies, as torch.chunk cuts."""
        spans = [slice(0, size) for size in self.shape]
        for placement, size, index in zip(self.placements, self.mesh.shape, coordinate, strict=True):
            if isinstance(placement, Shard):
                span = spans[placement.dim]
                most = -(-(span.stop - span.start) // size)
                begin = min(span.start + most * index, span.stop)
                spans[placement.dim] = slice(begin, min(begin + most, span.stop))
        return spans

    def of_whole(self, part: Tensor) -> DTensor:
        """This process's part of the parameter, or of a moment of it, as a view that knows the whole.

        A copy of the part on another device stays there (DTensor would carry it to the mesh's): the view then says
        where it lies, and no more.
        """
        stride, mesh = torch.empty(self.shape, device="meta").stride(), self.mesh
        if part.device.type != mesh.device_type:
            names = mesh.mesh_dim_names
            mesh = DeviceMesh(part.device.type, mesh.mesh, mesh_dim_names=names, _init_backend=False)
        return DTensor.from_local(part, mesh, self.placements, run_check=False, shape=self.shape, stride=stride)


@dataclass(frozen=True)
class Division:
    """How one model is divided over all processes; `parts` has an entry for each parameter that is."""

    group: dist.ProcessGroup
    """The learners: processes that share every batch, and hold the same parameters or parts of them."""
    parts: Mapping[str, Part] = field(default_factory=dict)
    tensor: dist.ProcessGroup | None = None
    """Processes that learn from the same tokens with other heads; None when heads are whole."""
    partial: frozenset[str] = frozenset()
    """Parameters whose gradient is that of this process's heads alone."""
    context: dist.ProcessGroup | None = None
    """Processes that learn from pieces of the same sequences; None when sequences are whole."""
    accumulates: bool = False
    """Gradients are summed over processes only after the last micro-batch."""
    pipeline: Pipeline | None = None
    homes: Mapping[str, int] = field(default_factory=dict)
    """Of a pipeline: which of its processes answers for each parameter and buffer of the whole model."""
    ends: dist.ProcessGroup | None = None
    """Of a pipeline whose first and last process both hold the embedding: those two."""

    @property
    def share(self) -> tuple[int, int]:
        """Which sequences of each batch are this process's: part i of so many."""
        size = 1 if self.context is None else dist.get_world_size(self.context)
        return dist.get_rank(self.group) // size, dist.get_world_size(self.group) // size

    @property
    def is_whole(self) -> bool:
        """Whether every process holds the whole model."""
        return not self.parts and self.pipeline is None

    @property
    def stage_size(self) -> int:
        """Processes that hold the same layers, or parts of them."""
        return dist.get_world_size() // (1 if self.pipeline is None else self.pipeline.size)

    @property
    def stage_rank(self) -> int:
        """Which of them this process is."""
        return dist.get_rank() % self.stage_size  # the pipeline is the outermost of the grid

    def is_mine(self, name: str) -> bool:
        """Whether the processes of this stage answer for a parameter or buffer."""
        return self.pipeline is None or self.homes[name] == dist.get_rank(self.pipeline.group)

    def view(self, name: str, part: Tensor) -> Tensor:
        """A tensor of a parameter's size, of which `part` is here, as one that knows the whole."""
        held = self.parts.get(name)
        return part if held is None or part.shape != held.here.shape else held.of_whole(part)

    def cut(self, name: str, whole: Tensor) -> Tensor:
        """What belongs here of a tensor of a parameter's size."""
        held = self.parts.get(name)
        return whole if held is None or whole.shape != held.shape else held.cut(whole)

    @torch.no_grad()
    def copy_into(self, other: nn.Module, model: nn.Module) -> None:
        """Give `other`, which is whole, the weights of the divided `model`, one parameter after the other."""
        for name, place in other.state_dict().items():
            if self.is_mine(name):
                held = self.parts.get(name)
                place.copy_(model.state_dict()[name] if held is None else held.of_whole(held.here).full_tensor())
            if self.pipeline is not None:
                dist.broadcast(place, group=self.pipeline.group, group_src=self.homes[name])

    def whole(self, name: str, part: Tensor) -> Tensor:
        """All numbers of a parameter, or of a moment of it, in every process at once (they must all ask)."""
        held = self.parts.get(name)
        return part if held is None else held.of_whole(part).full_tensor()

    def whole_shape(self, name: str, parameter: Tensor) -> torch.Size:
        """For the optimizer: the shape of the whole parameter."""
        return self.parts[name].shape if name in self.parts else parameter.shape

    def place(self, name: str) -> Hashable:
        """For the optimizer: matrices of one shape and one place are turned together."""
        return self.parts[name].placements if name in self.parts else None

    def turn_whole(self, name: str, box_ZUO: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
        """For the optimizer: `turn` of whole matrices that lie as parameter `name`, of which a box is here."""
        part = self.parts.get(name)
        if part is None or part.holders is None:
            return turn(box_ZUO)
        return turn_whole(box_ZUO, part.boxes, turn, part.holders)

    def begin_backward(self, model: nn.Module, *, is_last: bool) -> None:
        """Say before a backward pass whether it is the last one of the step."""
        if self.accumulates and isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(is_last)

    def sum_gradients(self, gradients: Mapping[str, Tensor], others: Sequence[Tensor]) -> None:
        """Sum over the processes what no backward pass has summed: gradients of what is whole or divided by hand.

        Those of tables, which are sparse, were summed by `sum_rows_over`.
        """
        loose = {n: grad for n, grad in gradients.items() if not isinstance(grad, DTensor) and not grad.is_sparse}
        sum_over(self.group, [gradient for name, gradient in loose.items() if name not in self.parts] + list(others))
        by_copies: dict[dist.ProcessGroup, list[Tensor]] = {}
        for name, gradient in loose.items():
            if name in self.parts and self.parts[name].n_copies > 1:
                by_copies.setdefault(self.parts[name].copies, []).append(gradient)
        for copies, tensors in by_copies.items():
            sum_over(copies, tensors)
        if self.ends is not None:
            sum_over(self.ends, [gradients[EMBEDDING]])
        if self.tensor is not None and self.partial:
            sum_over(self.tensor, [here(gradients[name]) for name in gradients if name in self.partial])

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The norm of the whole gradient, every number of it counted once."""
        norms = torch.stack(torch._foreach_norm([here(gradient) for gradient in gradients.values()])).double()
        if self.is_whole:
            return norms.norm()
        counted = [self.parts[name].n_copies if name in self.parts else self.stage_size for name in gradients]
        if self.ends is not None:
            counted = [count * (1 + (name == EMBEDDING)) for name, count in zip(gradients, counted, strict=True)]
        squares = (norms.square() / torch.tensor(counted, device=norms.device)).sum()
        dist.all_reduce(squares)
        return squares.sqrt()
