"""The loop of a stage: feed, step, count, tell the hooks, save. It contains no maths and no clock.

When it ends and how fast the schedule runs is the horizon's decision, recorded before it takes effect; where batches
come from is the source's, which for RL makes them with the model that is being trained.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from sobre.errors import RunError
from sobre.models.decoder import Decoder
from sobre.optim.optimizer import Optimizer
from sobre.parallel.division import Division
from sobre.runtime.clock import Meter
from sobre.runtime.horizon import Horizon
from sobre.train.batch import Batch
from sobre.train.losses import LossFn
from sobre.train.pieces import mine
from sobre.train.step import StepInfo, rehearse, train_step

WATCHED = 10
"""Steps after which is looked what costs something to know: how often MTP is right, which process is slow."""


@dataclass(frozen=True)
class Feed:
    """What one optimizer step eats."""

    batches: Sequence[Batch]
    """Empty when there is nothing to learn (RL without a difference between answers): the weights stay as they are."""
    flops: float = 0.0
    """Model FLOPs spent on making it (rollouts)."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """For the log, beside the step's own."""


class Source(Protocol):
    """Where the batches of a stage come from; its state is small, and the same state gives the same feed."""

    def feed(self, step: int) -> Feed: ...
    def prepare(self, step: int, device: torch.device) -> None:
        """Make what `feed(step)` will give, pinned for `device`; called while the device computes the step before.
        Nothing where the feed depends on that step. What waits is no part of the state."""

    def updated(self, step: int, info: StepInfo) -> Mapping[str, Any]:
        """The weights have changed by this step; returns what it learned of it for the log."""

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class StepRecord:
    """One step as the hooks see it."""

    step: int
    """Steps done in this stage, this one included."""
    info: StepInfo
    lr: float
    """Learning rate of this step over the peak."""
    flops: float
    """Model FLOPs of this step, rollouts included."""
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """Everything that one stage trains with."""

    name: str
    model: Decoder
    optimizer: Optimizer
    source: Source
    loss_fn: LossFn
    horizon: Horizon
    meter: Meter
    train_flops: Callable[[Batch], float]
    """Model FLOPs of forward and backward over a batch."""
    lr_at: Callable[[float, int], float]
    """(progress from 0 to 1, step) to the learning rate over the peak."""
    clip: float
    mtp_weight: float = 0.0
    rebalance: bool = True
    """Move the router biases; frozen in RL unless asked."""
    division: Division | None = None
    """How the model is divided over processes that share every batch; None for one on its own."""
    offloads: bool = False
    """Keep the optimizer's state on the host, and no gradient, while the source makes a feed."""


def run_stage(
    stage: Stage,
    *,
    start: int,
    hooks: Sequence[Callable[[StepRecord], None]],
    after_step: Callable[[int], None],
) -> int:
    """Train from step `start` until the horizon says so; return the steps done. `after_step` may save or interrupt."""
    step = start
    while not stage.horizon.ended(step):
        lr = stage.lr_at(stage.horizon.progress(step), step)
        feed = _fed(stage, step)
        stage.model.train()
        info = _step(stage, feed, lr, step)
        flops = feed.flops + sum(stage.train_flops(batch) for batch in feed.batches)
        stage.meter.add_flops(flops)
        step += 1
        metrics = {**feed.metrics, **stage.source.updated(step, info)}
        for hook in hooks:
            hook(StepRecord(step, info, lr, flops, metrics))
        after_step(step)
    return step


def _fed(stage: Stage, step: int) -> Feed:
    """The next feed; with the optimizer's state on the host while it is made, if the memory asks for it."""
    if not stage.offloads:
        return stage.source.feed(step)
    stage.optimizer.zero_grad()
    stage.optimizer.keep_on(torch.device("cpu"))
    feed = stage.source.feed(step)
    stage.optimizer.keep_on(stage.model.device)
    return feed


def dry_run(stage: Stage) -> None:
    """Forward and backward of the next feed, without an update: what cannot work fails before anything is spent."""
    before = stage.source.state()
    feed = stage.source.feed(0)
    stage.source.restore(before)
    stage.model.train()
    for whole in feed.batches[:1]:
        batch = mine(whole, stage.division).to(stage.model.device)
        loss = rehearse(stage.model, batch, stage.loss_fn, stage.division)
        if not loss.isfinite():
            raise RunError(f"{stage.name}: the loss of the very first batch is {float(loss)}; nothing was trained")
    stage.optimizer.zero_grad()


def _step(stage: Stage, feed: Feed, lr: float, step: int) -> StepInfo:
    if not feed.batches:
        return StepInfo(loss=0.0, n_tokens=0, n_trained=0.0, grad_norm=0.0)
    try:
        return train_step(
            stage.model,
            stage.optimizer,
            [mine(batch, stage.division) for batch in feed.batches],
            stage.loss_fn,
            lr_scale=lr,
            clip=stage.clip,
            mtp_weight=stage.mtp_weight,
            rebalance=stage.rebalance,
            watch=(step + 1) % WATCHED == 0,
            division=stage.division,
            meanwhile=lambda: stage.source.prepare(step + 1, stage.model.device),
        )
    except RunError as error:
        raise RunError(f"{stage.name}, step {step}: {error}") from error
