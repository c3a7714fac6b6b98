"""One optimizer step, the same for pretraining, fine-tuning and RL.

Counts first, over all micro-batches and processes; then forward and backward of each micro-batch with its sums divided
by those global counts, so that accumulation and data parallelism give the gradient of one large batch exactly; then
refuse what is not finite, clip, update, and move the router biases by the load of the whole batch.

Batches come from the host: what is counted is counted there, and they are carried to the model's device without
waiting. The host waits once, for the numbers that decide whether the step is refused (`_read`); before it does, it has
time for something else, such as the next batches (`meanwhile`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from sobre.errors import RunError
from sobre.models.decoder import Decoder
from sobre.optim.clip import clip_grad_norm
from sobre.optim.optimizer import Optimizer
from sobre.parallel.collectives import sum_rows_over
from sobre.parallel.division import EMBEDDING, Division, here
from sobre.train.batch import Batch
from sobre.train.losses import LossFn, n_right, second_token
from sobre.train.routes import rerouted
from sobre.train.stages import Counts, add, routing_layers, through_stages, told


@dataclass(frozen=True)
class StepInfo:
    """What a step tells the log; all over the whole batch."""

    loss: float
    """Per trained token, balance and MTP terms excluded."""
    n_tokens: int
    n_trained: float
    grad_norm: float
    mtp_loss: float | None = None
    mtp_acceptance: float | None = None
    """Share of MTP's first choices that are right: what a guess of it is worth in speculative decoding. None where
    nobody looked."""
    load_LE: Tensor | None = None
    """Tokens each expert of each routing layer received."""
    stats: dict[str, float] = field(default_factory=dict)
    """The loss function's own statistics, per trained token."""
    rerouted: float | None = None
    """Share of tokens whose experts are not those of the sampler; None where there was nothing to compare."""


def nothing_else() -> None:
    """What the host does beside a step, where nobody asks for more."""


def train_step(
    model: Decoder,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    loss_fn: LossFn,
    *,
    lr_scale: float,
    clip: float,
    mtp_weight: float = 0.0,
    rebalance: bool = True,
    watch: bool = False,
    division: Division | None = None,
    meanwhile: Callable[[], None] = nothing_else,
) -> StepInfo:
    """Accumulate over `batches`, update once.

    `meanwhile` is called when all that the device computes before the update is on its way. `rebalance=False` freezes
    the router biases (RL). `watch` also counts how often MTP is right, which costs its logits. Raises RunError, with
    nothing updated, when loss or gradient is not finite. With a `division`, every process brings its share of each
    batch.
    """
    mtp_weight = mtp_weight if model.cfg.n_mtp else 0.0
    device = model.device
    counts = _global_counts(batches, mtp_weight > 0, None if division is None else division.group, device)
    optimizer.zero_grad()
    there = [batch.to(device) for batch in batches]
    if division is None or division.pipeline is None:
        sums, loads = accumulate(model, there, loss_fn, counts, mtp_weight, division, watch=watch)
    else:
        sums, loads = through_stages(division.pipeline, model, there, loss_fn, counts, mtp_weight, watch=watch)
    for parameter in optimizer.params.values():
        grad = parameter.grad
        if grad is not None and grad.is_sparse:  # of a table: the rows that were read
            parameter.grad = grad.coalesce() if division is None else sum_rows_over(division.group, grad)
    if division is not None and division.ends is not None and optimizer.params[EMBEDDING].grad is None:
        optimizer.params[EMBEDDING].grad = torch.zeros_like(optimizer.params[EMBEDDING])
    gradients = {name: p.grad for name, p in optimizer.params.items() if p.grad is not None}
    norm: Tensor | None = None
    if division is not None:
        division.sum_gradients(gradients, list(sums.values()) + loads)
        norm = division.norm(gradients)
        if division.pipeline is not None:
            sums = told(division.pipeline, sums, loads)
    full_norm = clip_grad_norm([here(gradient) for gradient in gradients.values()], clip, norm=norm)
    meanwhile()
    rows = None if division is None or division.pipeline is None else routing_layers(division.pipeline, model.cfg)
    return _update(model, optimizer, sums, loads, counts, full_norm, rows, lr_scale=lr_scale, rebalance=rebalance)


def rehearse(model: Decoder, batch: Batch, loss_fn: LossFn, division: Division | None) -> Tensor:
    """Forward and backward of one batch; the sum of its loss over all processes."""
    counts = Counts(1.0, 1.0, 1.0, 1.0)
    if division is None or division.pipeline is None:
        sums, _ = accumulate(model, [batch], loss_fn, counts, 0.0, division)
    else:
        sums, _ = through_stages(division.pipeline, model, [batch], loss_fn, counts, 0.0)
    loss = sums.get("loss", torch.zeros((), device=model.device))
    if division is not None:
        dist.all_reduce(loss)
    return loss


def accumulate(
    model: Decoder,
    batches: Sequence[Batch],
    loss_fn: LossFn,
    counts: Counts,
    mtp_weight: float,
    division: Division | None,
    *,
    watch: bool = False,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Forward and backward of one micro-batch after the other: the sums, and load_LE of each."""
    sums: dict[str, Tensor] = {}
    loads: list[Tensor] = []
    for index, batch in enumerate(batches):
        output = model(batch.step, routes_LNA=batch.routes_LNA)
        loss = loss_fn(model, output, batch)
        elsewhere_N = rerouted(output.routes, batch)
        if elsewhere_N is not None:
            add(sums, "rerouted", elsewhere_N.sum())
        total = loss.sum / counts.trained + output.balance_loss / counts.sequences
        routing = [output]
        if mtp_weight:
            ahead_loss, ahead = second_token(model, output, batch)
            ahead_balance = ahead.balance_loss / counts.sequences
            total = total + mtp_weight * ahead_loss.sum / max(counts.second, 1.0) + ahead_balance
            add(sums, "mtp", ahead_loss.sum)
            if watch:
                add(sums, "mtp_right", n_right(model, ahead.hidden_ND, batch.second))
            routing.append(ahead)
        if division is not None:
            division.begin_backward(model, is_last=index == len(batches) - 1)
        total.backward()
        add(sums, "loss", loss.sum)
        for name, value in loss.stats.items():
            add(sums, f"stat/{name}", value)
        found = [load_LE for part in routing if (load_LE := part.load_LE) is not None]
        loads += [torch.cat(found)] if found else []
    return sums, loads


def _update(
    model: Decoder,
    optimizer: Optimizer,
    sums: dict[str, Tensor],
    loads: list[Tensor],
    counts: Counts,
    norm: Tensor,
    rows: Sequence[int] | None,
    *,
    lr_scale: float,
    rebalance: bool,
) -> StepInfo:
    load_LE = torch.stack(loads).sum(0) if loads else None
    seen_LE = None if load_LE is None else load_LE.to("cpu", non_blocking=True)  # there once `_read` is
    found = _read({**sums, "norm": norm})
    loss, grad_norm = found.pop("loss") / counts.trained, found.pop("norm")
    if not (_is_finite(loss) and _is_finite(grad_norm)):
        raise RunError(f"loss={loss} and gradient norm={grad_norm} must be finite; the step was refused")
    optimizer.step(lr_scale)
    if load_LE is not None and rebalance:
        mine_LE = load_LE if rows is None else load_LE[[row for row in rows if row < len(load_LE)]]
        for router, load_E in zip(model.routers(), mine_LE, strict=False):
            router.rebalance(load_E)
    return StepInfo(
        loss=loss,
        n_tokens=int(counts.tokens),
        n_trained=counts.trained,
        grad_norm=grad_norm,
        mtp_loss=found.pop("mtp") / max(counts.second, 1.0) if "mtp" in found else None,
        mtp_acceptance=found.pop("mtp_right") / max(counts.second, 1.0) if "mtp_right" in found else None,
        rerouted=found.pop("rerouted") / counts.tokens if "rerouted" in found else None,
        load_LE=seen_LE,
        stats={name.removeprefix("stat/"): value / counts.trained for name, value in found.items()},
    )


def _read(sums: dict[str, Tensor]) -> dict[str, float]:
    """The numbers, on the host: the one place of a step where it waits for the device."""
    return dict(zip(sums, torch.cat([value.reshape(1) for value in sums.values()]).tolist(), strict=True))


def _global_counts(
    batches: Sequence[Batch], with_mtp: bool, group: dist.ProcessGroup | None, device: torch.device
) -> Counts:
    found = [0.0] * 4
    for batch in batches:
        second = batch.second.total if with_mtp else 0.0
        for i, value in enumerate((batch.n_tokens, batch.step.n_begun, batch.first.total, second)):
            found[i] += value
    if group is not None:
        counts = torch.tensor(found, dtype=torch.float64, device=device)
        dist.all_reduce(counts, group=group)
        found = counts.tolist()
    if not found[2] > 0:
        raise RunError("a batch without a single trained token has no loss; every weight in it is 0")
    return Counts(*found)


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
