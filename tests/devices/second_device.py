"""A second device for machines that have none: its tensors say that they are elsewhere, and compute on the CPU.

As on a real accelerator, an operation on tensors of two devices is an error (0-dimensional ones of the host may take
part, and copies cross over), and what makes the host wait is counted. Run as a script by test_second_device.py, since
registering a device cannot be undone in a process.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

KIND = "npu"
HOME = torch.device("privateuseone", 0)
COPIES = {"aten::_to_copy", "aten::copy_"}
LOOKS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::bincount",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::equal",
    "aten::repeat_interleave.Tensor",
}
"""Operations whose result the host must see before it goes on."""

torch.inference_mode = torch.no_grad  # takes no tensors made in Python; before anything is decorated with it


class There(Tensor):
    """A tensor of the second device; `here` holds its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        # autograd has no thread for a device that is not there, but one for "meta": so it is one, and says another name
        shape = torch.empty_strided(here.shape, here.stride(), dtype=here.dtype, device="meta")
        made = Tensor._make_subclass(cls, shape, False, dispatch_device=True, device_for_backend_keys=HOME)
        made.here = here
        return made

    def __repr__(self) -> str:
        return f"There({self.here!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return HOME
        raise AssertionError(f"{func} ran outside of SecondDevice")


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, list | tuple):
        for part in x:
            yield from _tensors(part)


def _here(x: Any) -> Any:
    if isinstance(x, There):
        return x.here
    return type(x)(map(_here, x)) if type(x) in (list, tuple) else x


def _wrapped(x: Any, known: dict[int, Tensor]) -> Any:
    """Results as tensors of the device; those that were changed in place are the very arguments."""
    if isinstance(x, Tensor):
        return known[id(x)] if id(x) in known else There(x)
    return type(x)(_wrapped(part, known) for part in x) if isinstance(x, list | tuple) else x


class SecondDevice(TorchDispatchMode):
    """Inside the block, `KIND` is a device like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        """What made the host wait, by operation and place in the source."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return HOME
        name, kwargs = func._schema.name, dict(kwargs or {})
        wanted = kwargs.get("device")
        target = None if wanted is None else torch.device(wanted).type
        tensors = list(_tensors((args, tuple(kwargs.values()))))
        there = [x for x in tensors if isinstance(x, There)]
        if there and name not in COPIES:
            strays = [x for x in tensors if not isinstance(x, There) and x.ndim > 0]
            assert not strays, f"{name} mixes {KIND} with the host: {[tuple(x.shape) for x in strays]}"
        self._watch(func, name, args, kwargs, there, target)
        if target == KIND:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        out = func(*_here(args), **{key: _here(value) for key, value in kwargs.items()})
        stays = target == KIND or (bool(there) and target is None)
        if name == "aten::copy_":
            stays = isinstance(args[0], There)
        known = {id(x.here): x for x in there} | {id(x): x for x in tensors}
        return _wrapped(out, known) if stays else out

    def _watch(self, func: Any, name: str, args: Any, kwargs: Any, there: list[There], target: str | None) -> None:
        overload = f"{name}.{func._overloadname}"
        looks = bool(there) and (name in LOOKS or overload in LOOKS)
        if name == "aten::index.Tensor" or name == "aten::index":
            looks = any(isinstance(x, There) and x.dtype == torch.bool for x in args[1] if x is not None)
        if name == "aten::repeat_interleave" and kwargs.get("output_size") is not None:
            looks = False
        if name == "aten::_to_copy" and target is not None and not kwargs.get("non_blocking"):
            looks = (target == KIND) != isinstance(args[0], There)
        if name == "aten::copy_":
            crosses = isinstance(args[0], There) != isinstance(args[1], There) and args[1].ndim > 0
            looks = crosses and not (len(args) > 2 and args[2])
        if looks:
            frames = [f for f in traceback.extract_stack() if "/sobre/" in f.filename]
            at = f"{frames[-1].filename.rpartition('/sobre/')[2]}:{frames[-1].name}" if frames else "?"
            self.waits[f"{name.removeprefix('aten::')} in {at}"] += 1


class Module(_DummyBackendModule):
    """What torch.npu would be."""

    def get_device_name(self, device: torch.device) -> str:
        return "stand-in"

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 2**33, 2**34


def register() -> None:
    """Make `KIND` known to torch as this machine's accelerator."""
    torch.accelerator.synchronize = lambda device=None: None
    _setup_privateuseone_for_python_backend(KIND, backend_module=Module())
