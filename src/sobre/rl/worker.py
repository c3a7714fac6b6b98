"""A sampler apart from the learner: an engine over its own copy of the model, which takes up weights by version.

Plain Python: Ray makes an actor of the class (rl/ray_pool.py), and a test calls it where it stands. Weights travel as
the bytes of what changes, so that numbers of any type arrive as they left, and frozen weights travel with the model
alone.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine, EngineStats
from sobre.engine.request import Output, Request
from sobre.models.decoder import Decoder
from sobre.rl.shared_engine import difference

Weights = dict[str, NDArray[np.uint8]]


def weights_of(model: Decoder) -> Weights:
    """The bytes of all that training may change, router biases included."""
    tensors = model.state_dict(keep_vars=True).items()
    learned = {name: tensor for name, tensor in tensors if not _is_frozen(tensor)}
    return {
        name: tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        for name, tensor in learned.items()
    }


@torch.no_grad()
def take_up(model: Decoder, weights: Weights) -> None:
    """Give the model these weights; the arrays may be read-only, as those in Ray's shared memory are."""
    tensors = model.state_dict(keep_vars=True)
    for name, numbers in weights.items():
        tensor = tensors[name]
        tensor.copy_(torch.from_numpy(numbers.copy()).view(tensor.dtype).reshape(tensor.shape))


class Worker:
    """Example: outputs, stats = worker.generate(7, weights_of(model), requests)"""

    def __init__(self, model: Decoder, cfg: EngineConfig, *, run_seed: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = model
        self._engine = Engine(model, cfg, run_seed=run_seed)
        self._version = -1

    def generate(self, version: int, weights: Weights, requests: Sequence[Request]) -> tuple[list[Output], EngineStats]:
        """Answer with the weights of this version, which are read where the last ones were others."""
        if version != self._version:
            take_up(self._model, weights)
            self._engine.weights_changed()
            self._engine.weight_version = self._version = version
        before = self._engine.stats
        outputs = self._engine.generate(requests)
        return outputs, difference(self._engine.stats, before)


def _is_frozen(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad
