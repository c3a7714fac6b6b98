"""What one device holds while a stage learns on it, a sampler of the same weights beside it, and what gives way.

Memory is counted as in plan/layout.py, with three differences that our own trainer makes: weights that are frozen under
adapters (LoRA) have no gradient and no moments; the output head's logits exist a piece at a time (kernels/loss.py); and
sampler and trainer may take turns, the moments waiting on the host and no gradient kept while answers are sampled, the
cache given up while the model learns. Where all of it does not fit at once, `settle` gives up speed for room, the
cheapest first: turns, then computing layers again in the backward pass (a third more arithmetic), then both.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from sobre.plan.layout import (
    GRADIENT,
    OPTIMIZER,
    ROOM,
    RUNTIME_BYTES,
    WEIGHT,
    Layout,
    n_micro_batches,
    training_memory,
)
from sobre.plan.outline import Outline

LOGITS_BYTES = 1.5 * 2**30
"""Logits in 16 bits that are kept for the backward pass, and the piece of them that is turned into gradients in 32."""
MASTER = 4.0
"""Bytes of a number that learns. The rest of `OPTIMIZER` is what AdamW keeps of it; Muon's half is not counted on."""
Wish = bool | Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """An engine over the weights that learn."""

    copy_bytes: float
    """Of its own rounded copy."""
    cache_bytes: float
    at_once: int = 1
    """Answers sampled together: each has a row of logits."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a stage puts on one device."""

    model: Outline
    tokens: int
    """Most tokens of one forward and backward pass here."""
    layout: Layout = Layout(zero=0)
    """How weights, gradients and optimizer are divided over devices; what it says of recomputing is not read."""
    batch_tokens: int = 0
    """Tokens of an optimizer step, where a pipeline holds several micro-batches of it."""
    precision: str = "bf16"
    """Of the matrix products' inputs: fp32, bf16 or fp8."""
    adapters: int = 0
    """Numbers that learn beside frozen weights; 0: every weight learns."""
    frozen_bytes: float = 0.0
    """Of the frozen weights."""
    sampler: Sampler | None = None
    beside: float = 0.0
    """Bytes of other models: a reference, a teacher."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """How a stage runs on a device, and why."""

    recompute: bool
    offload: bool
    """Sampler and trainer take turns."""
    parts: dict[str, float]
    """Bytes by part, in the fuller phase."""
    plain: float
    """Bytes with nothing given up."""
    memory: float
    """Bytes of the device."""

    @property
    def planned(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.planned <= self.memory * ROOM

    @property
    def reason(self) -> str:
        """In words."""
        of = f"of {self.memory / 1e9:,.1f} GB"
        if not (self.recompute or self.offload):
            tail = "" if self.fits else ", which may not hold it"
            return f"planned at {self.planned / 1e9:,.1f} GB {of}{tail}: nothing is given up for room"
        what = ["sampler and trainer take turns, the optimizer's state on the host"] * self.offload
        what += ["layers are computed again in the backward pass"] * self.recompute
        tail = "" if self.fits else ", which may still not hold it"
        return f"{self.plain / 1e9:,.1f} GB {of} at once, so {' and '.join(what)}: {self.planned / 1e9:,.1f} GB{tail}"

    def to_dict(self) -> dict[str, Any]:
        """What an event keeps."""
        return {"recompute": self.recompute, "offload": self.offload, "fits": self.fits, "reason": self.reason}


def settle(load: Load, memory: float, *, recompute: Wish = "auto", offload: Wish = "auto") -> Settled:
    """The cheapest way that fits `memory` bytes by the plan, of those that the wishes leave; else the smallest one."""
    plain = sum(parts(load, recompute=False, offload=False).values())
    ways = [
        Settled(recompute=r, offload=o, parts=parts(load, recompute=r, offload=o), plain=plain, memory=memory)
        for r, o in _ways(load, recompute, offload)
    ]
    return next((way for way in ways if way.fits), min(ways, key=lambda way: way.planned))


def _ways(load: Load, recompute: Wish, offload: Wish) -> Iterator[tuple[bool, bool]]:
    """(recompute, offload), the cheapest first."""
    for again in (False, True) if recompute == "auto" else (recompute,):
        for turns in (False, True) if offload == "auto" and load.sampler else (offload is True,):
            yield again, turns


def parts(load: Load, *, recompute: bool, offload: bool) -> dict[str, float]:
    """Bytes by part while the device is fullest."""
    learning = _learning(load, recompute)
    if load.sampler is None:
        return learning
    sampler = load.sampler
    learning["sampler's weights"] = sampler.copy_bytes
    if not offload:
        return learning | {"cache": sampler.cache_bytes}
    sampling = {
        "weights": load.frozen_bytes,
        "numbers that learn": _masters(load, learning),
        "other models": load.beside,
        "sampler's weights": sampler.copy_bytes,
        "cache": sampler.cache_bytes,
        "buffers": RUNTIME_BYTES + 3 * 4.0 * sampler.at_once * load.model.vocab_size,
    }
    return max(learning, sampling, key=lambda phase: sum(phase.values()))


def _learning(load: Load, recompute: bool) -> dict[str, float]:
    """Bytes by part of a forward and backward pass."""
    layout = replace(load.layout, micro_batch=1, recompute="full" if recompute else "none")
    n_micro = n_micro_batches(layout, load.batch_tokens or load.tokens, load.tokens)
    found = training_memory(load.model, layout, load.tokens, n_micro, load.precision, most_logits=LOGITS_BYTES)
    if load.adapters:
        cast = 0.0 if load.precision == "fp32" else WEIGHT
        found["weights"] = load.frozen_bytes + cast * load.adapters
        found["gradients"] = GRADIENT * load.adapters
        found["optimizer"] = OPTIMIZER * load.adapters
    return found | {"other models": load.beside}


def _masters(load: Load, learning: dict[str, float]) -> float:
    """Bytes of the numbers that learn, which a training counts beside their moments, but in FP32 as the weights."""
    if load.precision == "fp32" and not load.adapters:
        return learning["weights"]
    return learning["optimizer"] * MASTER / OPTIMIZER
