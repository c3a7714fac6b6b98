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

from sobre.errors import ConfigError
from sobre.models.config import BLOCK, LoraConfig, ModelConfig
from sobre.plan.chips import Chip
from sobre.plan.count import adapter_numbers, cache_bytes_per_token
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
from sobre.plan.outline import Outline, outline
from sobre.schemas import VERSION

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
        given = ["sampler and trainer take turns, the optimizer's state on the host"] * self.offload
        given += ["layers are computed again in the backward pass"] * self.recompute
        at_once = f"{self.plain / 1e9:,.1f} GB at once would not fit"
        why = at_once if self.plain > self.memory * ROOM else "as asked"
        what = f"{'; '.join(given)} ({why})" if given else "nothing is given up for room"
        tail = "" if self.fits else ", which may not hold it"
        return f"{what}: {self.planned / 1e9:,.1f} of {self.memory / 1e9:,.1f} GB planned{tail}"

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
        return _there(learning)
    sampler = load.sampler
    learning["sampler"] = sampler.copy_bytes
    if not offload:
        return _there(learning | {"cache": sampler.cache_bytes})
    sampling = {
        "weights": load.frozen_bytes,
        "masters": _masters(load, learning),
        "other models": load.beside,
        "sampler": sampler.copy_bytes,
        "cache": sampler.cache_bytes,
        "buffers": RUNTIME_BYTES + 3 * 4.0 * sampler.at_once * load.model.vocab_size,
    }
    return _there(max(learning, sampling, key=lambda phase: sum(phase.values())))


def _there(parts: dict[str, float]) -> dict[str, float]:
    """The parts that are there at all."""
    return {name: size for name, size in parts.items() if size}


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


def cache_tokens(at_once: int, longest: int, max_len: int) -> int:
    """Tokens of a cache that holds `at_once` requests of `longest` tokens; one of the whole context at least."""

    def blocks(length: int) -> int:
        return -(-length // BLOCK)

    return max(at_once * blocks(longest), blocks(max_len)) * BLOCK


@dataclass(frozen=True, kw_only=True)
class OnOneCard:
    """GRPO on paper, with sampler and trainer on one chip."""

    name: str
    chip: Chip
    at_once: int
    longest: int
    load: Load
    settled: Settled

    def to_dict(self) -> dict[str, Any]:
        sampler = self.load.sampler
        assert sampler is not None
        return {
            "schema": VERSION,
            "kind": "one-card",
            "model": self.name,
            "chip": self.chip.name,
            "at_once": self.at_once,
            "longest": self.longest,
            "micro_tokens": self.load.tokens,
            "learning": self.load.adapters or self.load.model.total + self.load.model.mtp_total,
            "cache_bytes": sampler.cache_bytes,
            "memory": self.settled.parts,
            "memory_bytes": self.settled.memory,
            **self.settled.to_dict(),
        }


def on_one_card(
    cfg: ModelConfig,
    name: str,
    chip: Chip,
    *,
    at_once: int,
    longest: int,
    micro_tokens: int,
    lora_rank: int = 0,
    reference: bool = False,
    recompute: Wish = "auto",
    offload: Wish = "auto",
) -> OnOneCard:
    """Plan reinforcement learning of a model in 16 bits on one chip, as a run of ours lays it out.

    `at_once` answers of up to `longest` tokens, question included, are sampled together; the learner reads
    `micro_tokens` at a time. With `lora_rank` above 0 adapters learn, else all weights do; a `reference` is a second
    model of what learns, for a KL.
    """
    if longest > cfg.max_len:
        raise ConfigError(f"{name} reads at most {cfg.max_len:,} tokens, and {longest:,} are asked for")
    model, lora = outline(cfg, name), LoraConfig(rank=lora_rank)
    total = model.total + model.mtp_total
    adapters = adapter_numbers(cfg, lora) if lora_rank else 0
    learning = adapters or total
    n_cached = at_once * -(-longest // BLOCK) * BLOCK
    load = Load(
        model=model,
        tokens=max(micro_tokens, longest),
        adapters=adapters,
        frozen_bytes=WEIGHT * total if adapters else 0.0,
        sampler=Sampler(
            copy_bytes=WEIGHT * learning, cache_bytes=float(n_cached * cache_bytes_per_token(cfg)), at_once=at_once
        ),
        beside=MASTER * learning if reference else 0.0,
    )
    settled = settle(load, chip.memory_bytes, recompute=recompute, offload=offload)
    if not settled.fits:
        largest = max(settled.parts, key=lambda part: settled.parts[part])
        raise ConfigError(
            f"does not fit: {name} needs {settled.planned / 1e9:,.1f} GB with all that can be given up, and a"
            f" {chip.name} has {chip.memory_gb:g}; most of it is {largest} ({settled.parts[largest] / 1e9:,.1f} GB):"
            " fewer answers at once or shorter ones, fewer micro-tokens, or adapters (--lora-rank 16) may fit"
        )
    return OnOneCard(name=name, chip=chip, at_once=at_once, longest=longest, load=load, settled=settled)
