"""Recording work on CUDA: a graph that one launch runs (torch.cuda.graph; ROCm's HIP has the same).

The work runs three times before it is recorded, on a stream of its own, so that kernels are compiled and libraries have
their workspaces (torch's notes on CUDA graphs). It must read and write the same memory each time, and ask the device
nothing. Only this thread's calls may break a recording ("thread_local"): others may go on meanwhile.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
WARM_UP = 3


class Recorder:
    """Records pieces of work that run one after the other: they share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """What runs `work` again, and what it returned: tensors that every run fills."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                work()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            made = work()
        return graph.replay, made
