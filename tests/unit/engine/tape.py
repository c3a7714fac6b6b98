"""What a recording device does, on the CPU: operations written down once, and run again on the very same memory.

As under a CUDA graph, only what torch's operations do is repeated, with the numbers of the host as they were: Python
does not run again. What a graph could not hold is refused: an operation whose result the host must see.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

T = TypeVar("T")
LOOKS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::bincount",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::equal",
}


class Tape(TorchDispatchMode):
    """Writes down every operation inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in LOOKS:
            raise RuntimeError(f"{func._schema.name} asks the device")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def again(self) -> None:
        """Run everything once more; results go where they went."""
        for func, args, kwargs, out in self.calls:
            read = {x.untyped_storage().data_ptr() for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
            fresh = func(*args, **kwargs)
            for old, new in zip(tree_iter(out), tree_iter(fresh), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in read:
                    old.copy_(new)  # neither a view of what was read nor that itself, written in place


class Recorder:
    """Stands in for `cuda_graph.Recorder`."""

    def __init__(self) -> None:
        self.n_recorded = self.n_run = 0

    def __call__(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        work()
        tape = Tape()
        with tape:
            made = work()
        self.n_recorded += 1

        def again() -> None:
            self.n_run += 1
            tape.again()

        return again, made
