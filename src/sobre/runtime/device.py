"""The device, what it computes in, and how fast it is: measured in about two seconds, since labels and clocks lie.

`best` figures are the peak that shares are taken of; `typical` ones (medians) are what a plan counts on, because the
speed of a small or rented machine moves by tens of percent within minutes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sobre.errors import ConfigError
from sobre.runtime.config import DEVICES
from sobre.runtime.environment import cpu_name, memory_bytes

SIZE = {"cpu": 1024, "mps": 2048}
"""Side of the largest square matrices that are multiplied; 8192 on other accelerators."""
SMALLEST = 256
"""Side of the first ones."""
GROWS_BELOW_S = 0.02
"""A product faster than this is measured again at twice the side."""
COPY_BYTES = 128 * 2**20
"""Larger than most caches; memory speed is what moving it takes."""
THREADS_GAIN = 1.15
"""All threads must be this much faster than one in small work: one is steadier."""
BF16_GAIN = 1.2
"""bfloat16 must be this much faster than float32 in matrix products to pay for its casts."""


@dataclass(frozen=True)
class Calibration:
    """Measured speed of the machine with the present number of threads."""

    name: str
    device: str
    threads: int
    fp32_flops: float
    """Typical FLOPs per second of float32 matrix products."""
    bf16_flops: float
    fp32_best: float
    """The best of them: the peak."""
    bf16_best: float
    bytes_per_s: float
    """Memory read and written by a large copy."""
    seconds: float
    """What the calibration took."""

    @property
    def dtype(self) -> str:
        """What training should compute in here: "bfloat16" or "float32"."""
        return "bfloat16" if self.bf16_flops > BF16_GAIN * self.fp32_flops else "float32"

    def flops(self, dtype: str) -> float:
        return self.bf16_flops if dtype == "bfloat16" else self.fp32_flops

    def peak(self, dtype: str) -> float:
        return self.bf16_best if dtype == "bfloat16" else self.fp32_best

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "dtype": self.dtype}


def pick_device(wanted: str = "auto", index: int = 0) -> torch.device:
    """The device asked for, number `index` of its kind; "auto" takes the accelerator (torch.accelerator), else the CPU.

    MPS is taken only when it is named: nothing of ours was run on it, and it has no float64.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    kind = wanted
    if wanted == "auto":
        kind = "cpu" if found is None or found.type == "mps" else found.type
    if kind == "cpu":
        return torch.device("cpu")
    if kind not in DEVICES or found is None or found.type != kind:
        there = "cpu" if found is None else f"{found.type}, cpu"
        raise ConfigError(f"device={wanted!r} is not here; there are: auto, {there}")
    if index >= torch.accelerator.device_count():
        raise ConfigError(f"device={wanted!r}: number {index} is wanted, of {torch.accelerator.device_count()} here")
    return torch.device(kind, index)


def carried(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`. From the host it is pinned first, so that the host does not wait for the copy; to the
    host, it waits."""
    if tensor.device == device:
        return tensor
    return pinned(tensor, device).to(device, non_blocking=tensor.device.type == "cpu")


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host in memory that `device` copies from by itself; any other, and what is pinned, as it is."""
    if tensor.device.type == "cpu" and device.type == "cuda" and torch.cuda.is_available():
        return tensor.pin_memory()
    return tensor


def exact(tensor: Tensor) -> Tensor:
    """The tensor where float64 exists: MPS has none, so its tensors come to the host."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def memory_of(device: str) -> int | None:
    """Bytes that models may fill on the device: its own memory, or the machine's where it has none."""
    kind = torch.device(device).type
    if kind in ("cpu", "mps"):
        return memory_bytes()
    total: int = getattr(torch, kind).mem_get_info(device)[1]
    return total


def choose_threads(seconds: float = 0.6) -> int:
    """Use the number of threads, one or all, with which small work goes fastest; set it and return it.

    At the sizes that a laptop trains, a second thread may cost more than it brings, above all on cores that are shared.
    """
    everything = torch.get_num_threads()
    if everything == 1:
        return 1
    times = {}
    for threads in (1, everything):
        torch.set_num_threads(threads)
        times[threads] = median(timed(_small_work, torch.device("cpu"), seconds / 2))
    chosen = everything if times[everything] * THREADS_GAIN < times[1] else 1
    torch.set_num_threads(chosen)
    return chosen


def _small_work() -> None:
    """A little of what a training step does: thin products, a softmax, element-wise work."""
    x_ND, weight_FD = torch.ones(2048, 128, dtype=torch.bfloat16), torch.ones(384, 128, dtype=torch.bfloat16)
    for _ in range(4):
        y_NF = torch.nn.functional.linear(x_ND, weight_FD)
        scores = torch.bmm(y_NF.view(32, 64, 384), y_NF.view(32, 64, 384).mT)
        x_ND = x_ND + torch.softmax(scores, -1).sum().to(x_ND.dtype) * torch.nn.functional.silu(y_NF[:, :128])


def calibrate(device: torch.device | None = None, *, seconds: float = 1.8) -> Calibration:
    """Measure matrix products in both dtypes and the memory, each for a third of `seconds` at most."""
    device = device or pick_device()
    start = time.perf_counter()
    fp32 = product_rates(device, torch.float32, seconds / 3)
    bf16 = product_rates(device, torch.bfloat16, seconds / 3)
    moved = bytes_per_s(device, COPY_BYTES, seconds / 3)
    return Calibration(
        name=device_name(device),
        device=str(device),
        threads=torch.get_num_threads(),
        fp32_flops=median(fp32),
        bf16_flops=median(bf16),
        fp32_best=max(fp32),
        bf16_best=max(bf16),
        bytes_per_s=median(moved),
        seconds=time.perf_counter() - start,
    )


def product_rates(device: torch.device, dtype: torch.dtype, seconds: float) -> list[float]:
    """Operations per second of square matrix products; none where there is no kernel for the format.

    Matrices start small and grow while they are fast: a format that the machine emulates takes seconds at full size.
    """
    size, largest = SMALLEST, SIZE.get(device.type, 8192)
    while True:
        product = partial(_product, *(_filled(size, dtype, device) for _ in range(2)))
        try:
            times = timed(product, device, seconds if size == largest else 0.0)
        except (RuntimeError, NotImplementedError):
            return []
        if size >= largest or median(times) > GROWS_BELOW_S:
            return [2 * size**3 / each for each in times]
        size *= 2


def _filled(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if dtype == torch.int8:
        return torch.randint(-9, 9, (size, size), dtype=dtype, device=device)
    return torch.randn(size, size, device=device).to(dtype)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if left.dtype == torch.int8:
        return torch._int_mm(left, right)
    if left.dtype == torch.float8_e4m3fn:
        one = torch.ones((), device=left.device)
        return torch._scaled_mm(left, right.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    return torch.mm(left, right)


def bytes_per_s(device: torch.device, size_bytes: int, seconds: float) -> list[float]:
    """Bytes read and written per second by copies of this size."""
    source = torch.zeros(size_bytes, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return [2 * size_bytes / each for each in timed(lambda: target.copy_(source), device, seconds)]


def timed(work: Callable[[], Any], device: torch.device, seconds: float) -> list[float]:
    """Seconds of each call, after one that is not counted; at least three, then until the time is up."""
    work()
    _wait(device)
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 1000):
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return times


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type in ("cuda", "xpu", "npu"):
        name: str = getattr(torch, device.type).get_device_name(device)
        return name
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of {cpu_name()}" if device.type == "cpu" else cpu_name()
