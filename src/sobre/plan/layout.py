"""How a model is divided over chips, and what each chip must then hold.

Bytes of a trained parameter, in mixed precision (arXiv 1910.02054, 3.1): weight 2, gradient 4 (summed in FP32), master
weight and two moments 12; ZeRO stage 1 divides the 12 over the data-parallel chips, stage 2 the gradient too, stage 3
the weight too. Activations follow arXiv 2205.05198 (4.1), written out for any widths: what the backward pass reads,
attention scores never stored. Experts are divided over `expert` chips, out of the data-parallel ones.
"""

from dataclasses import asdict, dataclass
from math import ceil, inf
from typing import Any, Literal

from sobre.errors import ConfigError
from sobre.plan.chips import BYTES, Chip
from sobre.plan.outline import Layer, Outline

ScheduleName = Literal["1f1b", "interleaved", "zb1p", "dualpipe", "dualpipev"]
Recompute = Literal["none", "selective", "full"]
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full")
SCHEDULES: tuple[ScheduleName, ...] = ("1f1b", "interleaved", "zb1p", "dualpipe", "dualpipev")
WEIGHT, GRADIENT, OPTIMIZER = 2.0, 4.0, 12.0
"""Bytes per parameter."""
FRAGMENTS = 0.06
"""Share of what is allocated and freed that lies unused between blocks: *assumed*."""
ROOM = 0.97
"""Share of a chip's memory that a plan may fill."""
RUNTIME_BYTES = 1.5e9
"""Context, libraries and communication buffers of a chip: *assumed*."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A division of `chips` = data x tensor x pipeline x context chips."""

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    context: int = 1
    zero: Literal[0, 1, 2, 3] = 1
    micro_batch: int = 1
    """Sequences that go through at once."""
    schedule: ScheduleName = "1f1b"
    chunks: int = 1
    """Stages that a chip holds in the interleaved schedule."""
    recompute: Recompute = "none"

    def __post_init__(self) -> None:
        for name in ("data", "tensor", "pipeline", "expert", "context", "micro_batch", "chunks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"layout: {name}={getattr(self, name)} must be 1 or more")
        if self.zero not in (0, 1, 2, 3):
            raise ConfigError(f"layout: zero={self.zero} must be 0, 1, 2 or 3")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"layout: no schedule {self.schedule!r}; there are {', '.join(SCHEDULES)}")
        if self.recompute not in RECOMPUTES:
            raise ConfigError(f"layout: no recompute {self.recompute!r}; there are {', '.join(RECOMPUTES)}")
        if (self.data * self.context * self.tensor) % self.expert:
            raise ConfigError(f"layout: expert={self.expert} must divide data x context x tensor")

    @property
    def chips(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        words = [f"{name} {getattr(self, name)}" for name in ("data", "tensor", "pipeline", "expert", "context")]
        used = [word for word in words if not word.endswith(" 1")] or ["one chip"]
        tail = [f"ZeRO {self.zero}", f"micro-batch {self.micro_batch}", f"recompute {self.recompute}"]
        return ", ".join(used + tail + ([self.schedule] if self.pipeline > 1 else []))


def held(model: Outline, layout: Layout) -> tuple[float, float]:
    """Parameters that one chip works with: (all but experts, experts), MTP included."""
    mtp_experts = model.mtp.ffn.n_experts * model.mtp.ffn.expert if model.mtp else 0
    experts = model.experts + mtp_experts
    rest = model.total + model.mtp_total - experts
    copies = 2 if layout.schedule == "dualpipe" and layout.pipeline > 1 else 1  # both ends hold both directions
    split = layout.pipeline / copies
    return rest / (layout.tensor * split), experts / (layout.expert * split)


def activation_bytes(layer: Layer, d_model: int, recompute: Recompute, size: float = 2.0) -> float:
    """Bytes that one token leaves in one layer for the backward pass; `size` is one number at a matrix's entrance."""
    if recompute == "full":
        return 2.0 * d_model
    ffn, inner = layer.ffn, layer.attention.inner
    wide = ffn.n_matrices * (ffn.d_inner + ffn.n_active * ffn.d_expert)
    if recompute == "none":
        return 2.0 * (4 * d_model + inner) + size * (2 * d_model + ffn.n_active * d_model + wide)
    # norms, the products of gates and what is cheap to project up again are made anew
    return 2.0 * 2 * d_model + size * (2 * d_model + inner / 2 + wide * (1 - 1 / ffn.n_matrices))


def _passing(layer: Layer) -> int:
    """Gradients of a token that live at once inside a layer: of gate, up and what goes down, which experts' kernels
    are done with before the other two are there."""
    ffn = layer.ffn
    return ffn.n_matrices * ffn.d_inner + (ffn.n_matrices - 1) * ffn.n_active * ffn.d_expert


def training_memory(
    model: Outline,
    layout: Layout,
    seq_len: int,
    n_micro: int,
    precision: str = "bf16",
    *,
    most_logits: float = inf,
) -> dict[str, float]:
    """Peak bytes on the fullest chip, by part; `most_logits` is what a head holds of its logits at once, at most."""
    size = min(2.0, BYTES[precision])
    weight, optimizer, wide = (4.0, 8.0, 2.0) if precision == "fp32" else (WEIGHT, OPTIMIZER, 1.0)  # no copy in 16 bits
    rest, experts = held(model, layout)
    shard_rest = layout.data * layout.context
    shard_experts = max(1, layout.data * layout.context * layout.tensor // layout.expert)

    def split(bytes_each: float, stage: int) -> float:
        if layout.zero < stage:
            return bytes_each * (rest + experts)
        return bytes_each * (rest / shard_rest + experts / shard_experts)

    flying = in_flight(layout, n_micro)
    tokens = layout.micro_batch * seq_len / layout.context
    layers = [*model.layers, *([model.mtp] if model.mtp else [])]
    kept = sum(activation_bytes(layer, model.d_model, layout.recompute, size) * layer.count for layer in layers)
    widest = max(activation_bytes(layer, model.d_model, "none") for layer in layers)
    passing = 2.0 * max(map(_passing, layers))
    activations = wide * tokens / layout.tensor * (kept / layout.pipeline * flying)
    working = wide * tokens / layout.tensor * (passing + (widest if layout.recompute != "none" else 0.0))
    heads = 2 if model.mtp else 1  # MTP's loss waits for the same backward pass
    # 16 bits and FP32, in pieces of 8,192 tokens
    logits = heads * min(min(tokens, 8192) * model.vocab_size * 6.0 / layout.tensor, most_logits)
    gathered = 2 * weight * (rest + experts) / max(1, model.n_layers / layout.pipeline) if layout.zero == 3 else 0.0
    parts = {
        "weights": split(weight, 3),
        "gradients": split(GRADIENT, 2),
        "optimizer": split(optimizer, 1),
        "activations": activations + working,
        "buffers": logits + gathered + RUNTIME_BYTES,
    }
    return parts | {"fragments": FRAGMENTS * (parts["activations"] + logits + gathered)}


def serving_memory(
    model: Outline, *, chips: int, users: int, context: int, weight_bytes: float, cache_bytes: float
) -> dict[str, float]:
    """Bytes on each of `chips` chips that share weights and users evenly.

    A mixture on several chips divides its experts, and each chip holds the rest whole (data-parallel attention).
    """
    whole = model.total - model.experts if model.is_moe else 0
    weights = (whole + (model.total - whole) / chips) * weight_bytes
    cache = users * model.cache_numbers(context) * cache_bytes / chips
    working = 64.0 * model.d_model * max(users / chips, 1) + RUNTIME_BYTES / 2
    return {"weights": weights, "cache": cache, "buffers": working}


def n_micro_batches(layout: Layout, batch_tokens: float, seq_len: int) -> int:
    """Micro-batches of one step on one pipeline."""
    return max(1, ceil(batch_tokens / (seq_len * layout.data * layout.micro_batch)))


def does_not_fit(model: Outline, chip: Chip, layout: Layout, parts: dict[str, float]) -> str:
    """The message of a layout that needs more memory than there is: by how much, and of what."""
    largest = max(parts, key=lambda part: parts[part])
    return (
        f"does not fit: memory breaks first: {model.name} with {layout} needs {sum(parts.values()) / 1e9:,.1f} GB on"
        f" each chip and a {chip.name} has {chip.memory_gb:g}; most of it is {largest}"
        f" ({parts[largest] / 1e9:,.1f} GB)"
    )


def in_flight(layout: Layout, n_micro: int) -> float:
    """Micro-batches whose activations the fullest stage holds."""
    if layout.pipeline == 1:
        return 1.0
    if layout.schedule == "dualpipe":
        return float(min(layout.pipeline + 1, n_micro))
    if layout.schedule == "dualpipev":  # 2P + 1 stages, each half of what a chip holds
        return float(min(layout.pipeline + 0.5, n_micro))
    if layout.schedule == "interleaved":
        extra = 1 + (layout.pipeline - 1) / (layout.pipeline * layout.chunks)
        return min(float(n_micro), layout.pipeline * extra)
    return float(min(layout.pipeline, n_micro))
