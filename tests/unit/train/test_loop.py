"""The dry run of a stage: what cannot work is refused before anything is spent, and nothing has moved."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from sobre.errors import RunError
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.runtime.clock import Meter
from sobre.runtime.events import EventLog
from sobre.runtime.horizon import Horizon
from sobre.train.batch import from_rows
from sobre.train.loop import Feed, Stage, dry_run
from sobre.train.losses import Loss, next_token


class Rows:
    """A source whose state is a count."""

    def __init__(self) -> None:
        self.taken = 0

    def feed(self, step: int) -> Feed:
        self.taken += 1
        return Feed([from_rows(torch.arange(self.taken, self.taken + 34).view(2, 17))])

    def prepare(self, step: int, device: torch.device) -> None: ...

    def updated(self, step: int, info: object) -> Mapping[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.taken = state["taken"]


@pytest.mark.parametrize("factor", [1.0, math.nan, math.inf])
def test_the_dry_run_refuses_a_loss_that_is_not_finite_and_moves_nothing(factor: float, nano_config: ModelConfig):
    seen: list[int] = []

    def loss(model, output, batch) -> Loss:
        seen.append(int(batch.step.tokens_N[0]))
        return Loss(next_token(model, output, batch).sum * factor)

    model = Decoder(nano_config)
    model.init_weights(0)
    names = dict(model.named_parameters())
    optimizer, meter = Optimizer(names, roles(names), OptimConfig()), Meter("flops", 1e12)
    horizon = Horizon(EventLog(None), meter, "sft", budget=None, guess=3)
    rate = lambda progress, step: 1.0  # noqa: E731
    stage = Stage("sft", model, optimizer, Rows(), loss, horizon, meter, lambda batch: 1.0, rate, clip=1.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if math.isfinite(factor):
        dry_run(stage)
    else:
        with pytest.raises(RunError, match="sft: the loss of the very first batch is .*; nothing was trained"):
            dry_run(stage)
    assert seen == [1], "the batch that the first step takes"
    assert stage.source.state() == {"taken": 0}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert meter.used() == 0
    if math.isfinite(factor):
        assert all(parameter.grad is None for parameter in model.parameters())
