"""One optimizer step, the same for pretraining, fine-tuning and RL.

Counts first, over all micro-batches and processes; then forward and backward of each micro-batch with its sums divided
by those global counts, so that accumulation and data parallelism give the gradient of one large batch exactly; then
refuse what is not finite, clip, update, and move the router biases by the load of the whole batch.

Batches come from the host: what is counted is counted there, and they are carried to the model's device without
waiting. The host waits once, for the numbers that decide whether the step is refused (`_read`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from sobre.errors import RunError
from sobre.models.decoder import Decoder
from sobre.optim.clip import clip_grad_norm
from sobre.optim.optimizer import Optimizer
from sobre.parallel.collectives import sum_rows_over
from sobre.parallel.division import Division, here
from sobre.train.batch import Batch
from sobre.train.losses import LossFn, second_token


@dataclass(frozen=True)
class StepInfo:
    """What a step tells the log; all over the whole batch."""

    loss: float
    """Per trained token, balance and MTP terms excluded."""
    n_tokens: int
    n_trained: float
    grad_norm: float
    mtp_loss: float | None = None
    load_LE: Tensor | None = None
    """Tokens each expert of each routing layer received."""
    stats: dict[str, float] = field(default_factory=dict)
    """The loss function's own statistics, per trained token."""


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
    division: Division | None = None,
) -> StepInfo:
    """Accumulate over `batches`, update once.

    `rebalance=False` freezes the router biases (RL). Raises RunError, with nothing updated, when loss or gradient is
    not finite. With a `division`, every process brings its share of each batch.
    """
    with_mtp = mtp_weight > 0 and model.mtp is not None
    device = model.embed.weight.device
    counts = _global_counts(batches, with_mtp, None if division is None else division.group, device)
    _, n_sequences, n_trained, n_second = counts
    sums: dict[str, Tensor] = {}
    loads: list[Tensor] = []
    optimizer.zero_grad()
    for index, batch in enumerate(batch.to(device) for batch in batches):
        output = model(batch.step, routes_LNA=batch.routes_LNA)
        loss = loss_fn(model, output, batch)
        total = loss.sum / n_trained + output.balance_loss / n_sequences
        routing = [output]
        if with_mtp:
            ahead_loss, ahead = second_token(model, output, batch)
            total = total + mtp_weight * ahead_loss.sum / max(n_second, 1.0) + ahead.balance_loss / n_sequences
            _add(sums, "mtp", ahead_loss.sum)
            routing.append(ahead)
        if division is not None:
            division.begin_backward(model, is_last=index == len(batches) - 1)
        total.backward()
        _add(sums, "loss", loss.sum)
        for name, value in loss.stats.items():
            _add(sums, f"stat/{name}", value)
        found = [load_LE for part in routing if (load_LE := part.load_LE) is not None]
        loads += [torch.cat(found)] if found else []
    for parameter in optimizer.params.values():
        grad = parameter.grad
        if grad is not None and grad.is_sparse:  # of a table: the rows that were read
            parameter.grad = grad.coalesce() if division is None else sum_rows_over(division.group, grad)
    gradients = {name: p.grad for name, p in optimizer.params.items() if p.grad is not None}
    norm: Tensor | None = None
    if division is not None:
        division.sum_gradients(gradients, list(sums.values()) + loads)
        norm = division.norm(gradients)
    full_norm = clip_grad_norm([here(gradient) for gradient in gradients.values()], clip, norm=norm)
    return _update(model, optimizer, sums, loads, counts, full_norm, lr_scale=lr_scale, rebalance=rebalance)


def _update(
    model: Decoder,
    optimizer: Optimizer,
    sums: dict[str, Tensor],
    loads: list[Tensor],
    counts: Sequence[float],
    norm: Tensor,
    *,
    lr_scale: float,
    rebalance: bool,
) -> StepInfo:
    n_tokens, _, n_trained, n_second = counts
    load_LE = torch.stack(loads).sum(0) if loads else None
    seen_LE = None if load_LE is None else load_LE.to("cpu", non_blocking=True)  # there once `_read` is
    found = _read({**sums, "norm": norm})
    loss, grad_norm = found.pop("loss") / n_trained, found.pop("norm")
    if not (_is_finite(loss) and _is_finite(grad_norm)):
        raise RunError(f"loss={loss} and gradient norm={grad_norm} must be finite; the step was refused")
    optimizer.step(lr_scale)
    if load_LE is not None and rebalance:
        for router, load_E in zip(model.routers(), load_LE, strict=False):
            router.rebalance(load_E)
    return StepInfo(
        loss=loss,
        n_tokens=int(n_tokens),
        n_trained=n_trained,
        grad_norm=grad_norm,
        mtp_loss=found.pop("mtp") / max(n_second, 1.0) if "mtp" in found else None,
        load_LE=seen_LE,
        stats={name.removeprefix("stat/"): value / n_trained for name, value in found.items()},
    )


def _read(sums: dict[str, Tensor]) -> dict[str, float]:
    """The numbers, on the host: the one place of a step where it waits for the device."""
    return dict(zip(sums, torch.cat([value.reshape(1) for value in sums.values()]).tolist(), strict=True))


def _global_counts(
    batches: Sequence[Batch], with_mtp: bool, group: dist.ProcessGroup | None, device: torch.device
) -> Sequence[float]:
    """(tokens, sequences, trained tokens, tokens trained by MTP) over micro-batches and processes."""
    found = [0.0] * 4
    for batch in batches:
        n_sequences = batch.step.n_sequences - bool(batch.step.n_filler)
        second = batch.second.total if with_mtp else 0.0
        for i, value in enumerate((batch.n_tokens, n_sequences, batch.first.total, second)):
            found[i] += value
    if group is not None:
        counts = torch.tensor(found, dtype=torch.float64, device=device)
        dist.all_reduce(counts, group=group)
        found = counts.tolist()
    if not found[2] > 0:
        raise RunError("a batch without a single trained token has no loss; every weight in it is 0")
    return found


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    value = value.detach()
    sums[name] = sums[name] + value if name in sums else value


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
