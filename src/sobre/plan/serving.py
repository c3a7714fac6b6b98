"""What it takes to serve a model: a decode step, a prefill, tokens a second, dollars for a million tokens.

A decode step reads every weight that it needs once and every user's cache, and computes little; a prefill computes
much. With experts on many chips (arXiv 2412.19437, 3.4) attention is data-parallel, and two micro-batches take turns so
that one computes while the other's tokens travel; each of them then reads the weights.
"""

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from sobre.errors import ConfigError
from sobre.plan.chips import BYTES, Chip
from sobre.plan.efficiency import COMMUNICATION_UNITS, FITTED, Efficiency
from sobre.plan.layout import Layout, serving_memory
from sobre.plan.outline import Outline
from sobre.plan.step import (
    Products,
    StepWork,
    add,
    all_to_all_bytes,
    dense_products,
    expert_products,
    formats,
    moved_numbers,
    product,
    seconds,
)
from sobre.schemas import VERSION

BANDWIDTH = 0.85
"""Share of the memory's bandwidth that decoding reaches: FlashMLA publishes 3,000 of 3,350 GB/s for the cache, matrices
read with few rows reach less."""
LAYER_S = 30e-6
"""Seconds of a layer that neither bytes nor FLOPs explain: launches and small kernels, *assumed*."""
TRAVEL_S = 77e-6
"""Least seconds of one dispatch or combine among chips: DeepEP's low-latency kernel with 8 ranks."""
VARIETY = 1.0
"""Standard deviation of the lengths of requests over their mean, as if they ended by chance: *assumed*. Traces of real
services have longer tails still (arXiv 2401.17644, 2505.09999); equal lengths would be 0."""
UNITS = tuple(2**k for k in range(11))
"""Chips of a serving unit that are tried where their number is not given."""
PREFILL_TOKENS = 16_384
"""Tokens of a prefill batch on one chip, as in DeepSeek's published profile."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """A serving unit on paper: `chips` chips that share the experts (or the tensors) of one model."""

    model: Outline
    chip: Chip
    chips: int
    users: int
    """Sequences that the unit decodes at once."""
    context: int
    """Tokens that a sequence holds, on average over its life."""
    hits: float
    """Share of the input that comes from a cache of prefixes."""
    variety: float
    """Standard deviation of the lengths of requests over their mean."""
    weights: str
    cache: str
    memory: dict[str, float]
    decode_s: float
    """Of one step: one token for every user."""
    prefill_s: float
    """Of one computed input token on one chip."""
    cached_s: float
    """Of one input token whose keys are fetched instead, on one chip."""

    @property
    def tokens_per_s_per_user(self) -> float:
        return 1 / self.decode_s

    @property
    def decode_per_chip(self) -> float:
        """Output tokens a second."""
        return self.users / self.chips / self.decode_s

    @property
    def prefill_per_chip(self) -> float:
        """Input tokens a second, cached ones included."""
        return 1 / (self.prefill_s * (1 - self.hits) + self.cached_s * self.hits)

    def price(self, kind: str) -> float | None:
        """Dollars for a million tokens of `input`, `cached` or `output`, at full load."""
        seconds = {"input": self.prefill_s, "cached": self.cached_s, "output": 1 / self.decode_per_chip}[kind]
        return self.chip.usd(seconds * 1e6 / 3600)

    def chips_for(self, input_per_day: float, output_per_day: float) -> float:
        """Chips that a day's tokens keep busy, prefill and decode on chips of their own."""
        return (input_per_day / self.prefill_per_chip + output_per_day / self.decode_per_chip) / 86_400

    def break_even(self) -> list[dict[str, Any]]:
        """For each listed API of this model: the load at which an output token costs the same here."""
        own = self.price("output")
        listed = [] if own is None else [api for api in apis().values() if api["model"] == self.model.name]
        return [
            {"usd_per_million_output": api["output"], "source": api["source"], "load": (own or 0.0) / api["output"]}
            for api in listed
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": VERSION,
            "kind": "serving",
            "model": self.model.name,
            "params_total": self.model.total,
            "params_active": self.model.active,
            "chip": self.chip.name,
            "chips": self.chips,
            "users": self.users,
            "context": self.context,
            "cache_hits": self.hits,
            "variety": self.variety,
            "weights": self.weights,
            "cache": self.cache,
            "cache_bytes_per_token": self.model.cache_bytes_per_token(BYTES[self.cache]),
            "memory_per_chip_bytes": sum(self.memory.values()),
            "memory_by_part": self.memory,
            "decode_step_s": self.decode_s,
            "tokens_per_s_per_user": self.tokens_per_s_per_user,
            "output_tokens_per_s_per_chip": self.decode_per_chip,
            "input_tokens_per_s_per_chip": self.prefill_per_chip,
            "usd_per_million": {kind: self.price(kind) for kind in ("input", "cached", "output")},
            "price_usd_per_h": self.chip.usd_per_h,
            "price_source": self.chip.price_source,
            "break_even": self.break_even(),
        }


def apis() -> dict[str, dict[str, Any]]:
    """Listed prices of public APIs."""
    return tomllib.loads(resources.files(__package__).joinpath("apis.toml").read_text(encoding="utf-8"))


def serve(
    model: Outline,
    chip: Chip,
    *,
    chips: int = 0,
    users: int = 1,
    context: int = 4096,
    hits: float = 0.0,
    weights: str = "bf16",
    cache: str = "bf16",
    variety: float = VARIETY,
    eff: Efficiency = FITTED,
) -> Serving:
    """Plan a serving unit; `chips=0` takes the fewest that hold it. Raises a ConfigError that says what would fit."""
    if chips < 0 or users < 1:
        raise ConfigError(f"chips={chips} must be 0 (the fewest that hold it) or more, and users={users} 1 or more")
    if not 0 <= hits < 1:
        raise ConfigError(f"hits={hits} must lie in 0..1, and not every token can come from the cache")
    if not 0 <= variety <= 10:
        raise ConfigError(f"variety={variety} must lie in 0..10: 0 is requests of one length")
    for form in (weights, cache):
        if form not in BYTES:
            raise ConfigError(f"no format {form!r}; there are {', '.join(BYTES)}")

    def memory_of(n: int) -> dict[str, float]:
        return serving_memory(
            model, chips=n, users=users, context=context, weight_bytes=BYTES[weights], cache_bytes=BYTES[cache]
        )

    fewest = next((n for n in UNITS if sum(memory_of(n).values()) <= chip.memory_bytes), 0)
    chips = chips or fewest or UNITS[-1]
    chip.check_joined(chips)
    memory = memory_of(chips)
    if sum(memory.values()) > chip.memory_bytes:
        raise ConfigError("does not fit: " + _advice(model, chip, chips, fewest, users, context, memory, weights))
    return Serving(
        model=model,
        chip=chip,
        chips=chips,
        users=users,
        context=context,
        hits=hits,
        variety=variety,
        weights=weights,
        cache=cache,
        memory=memory,
        decode_s=decode_step(model, chip, chips, users / chips, context, weights, cache, eff),
        prefill_s=prefill_token(model, chip, chips, context, hits, weights, eff, variety),
        cached_s=model.cache_bytes_per_token(BYTES[cache]) / (chip.network / 2 * 1e9 * eff.link or chip.bytes_per_s),
    )


def decode_step(
    model: Outline, chip: Chip, chips: int, batch: float, context: int, weights: str, cache: str, eff: Efficiency
) -> float:
    """Seconds of a step that brings one token to each of `batch` users per chip."""
    eff = eff.where(chip.measured)
    width, memory = BYTES[weights], chip.bytes_per_s * (1.0 if chip.measured else BANDWIDTH)
    rate = chip.peak(weights) * eff.matrix
    spread = model.is_moe and chips > 1
    everybody = max(batch * chips, 1.0)
    stored = 0.0
    for layer in model.layers:
        ffn = layer.ffn
        dense = layer.attention.matrix + ffn.dense
        if ffn.n_experts:
            visited = 1 - (1 - ffn.n_active / ffn.n_experts) ** everybody  # experts that some token visits
            stored += layer.count * (dense / (1 if spread else chips) + ffn.n_experts * ffn.expert * visited / chips)
        else:
            stored += layer.count * dense / chips
    stored += model.vocab_size * model.d_model / (1 if spread else chips)
    reads = stored * width / memory
    keys = batch * model.cache_numbers(context) * BYTES[cache] / memory
    products = 2.0 * model.active * batch / rate
    attention = model.decode_flops(context) - 2.0 * model.active
    scores = attention * batch / (chip.peak(chip.usual) * min(0.6, 1.5 * eff.attention))
    layers = model.n_layers * LAYER_S
    if not spread:
        return reads + max(keys, scores) + products + layers + _all_reduce(model, chip, chips, batch, eff)
    travel = _travel(model, chip, chips, batch, weights, eff)
    two = 2 if batch >= 2 else 1  # micro-batches that take turns
    busy = two * (reads + layers) + max(keys, scores) + products
    return busy + max(0.0, travel + two * _moe_layers(model) * 2 * TRAVEL_S - eff.overlap * busy * (two - 1))


def prefill_token(
    model: Outline, chip: Chip, chips: int, context: int, hits: float, weights: str, eff: Efficiency, variety: float
) -> float:
    """Seconds of one computed input token on one chip, in batches of PREFILL_TOKENS: a training step's forward pass.

    The products, the casts, the memory-bound work, the units set aside for the all-to-all and the links are those of
    plan/step.py, once instead of three times. What training does not have: computed tokens see the cached ones, whose
    latents are projected to keys and values again, and long requests hold most of the tokens.
    """
    spread = model.is_moe and chips > 1
    layout = Layout(data=chips, expert=chips) if spread else Layout(tensor=chips)
    tokens = float(PREFILL_TOKENS) if spread else float(PREFILL_TOKENS * chips)
    wide, fmt = formats(chip, weights)
    again = hits / (1 - hits)  # cached tokens for each computed one
    seen = context * (1 + variety**2) * (1 + hits) / 2  # a token sits in a request of length L as often as L is long
    dense, experts = Products(precision=fmt), Products(precision=fmt)
    attention = elementwise = tensor = link = network = 0.0
    for layer in model.layers:
        part, times = layer.attention, layer.count
        dense = add(dense, dense_products(layer, model.d_model, tokens, layout.tensor, times, fmt))
        if part.latent:
            made_again = product(tokens * again, part.latent, part.expanded / layout.tensor, times, fmt)
            dense = add(dense, made_again)
        experts = add(experts, expert_products(layer, model.d_model, tokens, layout, times, fmt))
        scores = part.pair * min(seen, part.reach or seen) + part.index_pair * seen + part.recurrent
        attention += times * tokens * scores / layout.tensor
        width = moved_numbers(layer, model.d_model) / layout.tensor
        elementwise += times * tokens * width * (BYTES[wide] + (1.0 if fmt != wide else 0.0))
        if layout.tensor > 1:
            tensor += times * 4.0 * (layout.tensor - 1) / layout.tensor * tokens * model.d_model * 2
        there = all_to_all_bytes(layer, model.d_model, tokens, layout, chip, fmt != wide)
        link, network = link + times * there[0] / 2, network + times * there[1] / 2  # forward alone
    load = StepWork(
        dense=dense,
        head=Products(precision=wide),
        experts=experts,
        attention=attention,
        elementwise=elementwise,
        tensor_bytes=tensor,
        expert_link_bytes=link,
        expert_network_bytes=network,
        data_link_bytes=0.0,
        data_network_bytes=0.0,
        optimizer_bytes=0.0,
        bubble_share=0.0,
        units=1 - COMMUNICATION_UNITS if spread and chips > chip.node else 1.0,
        hidden_experts=True,  # two micro-batches take turns
        tensor_on_link=layout.tensor <= chip.node,
        waiting=chips,
    )
    return sum(seconds(load, chip, eff).values()) / PREFILL_TOKENS


def _moe_layers(model: Outline) -> int:
    return sum(layer.count for layer in model.layers if layer.ffn.n_experts)


def _travel(model: Outline, chip: Chip, chips: int, tokens: float, weights: str, eff: Efficiency) -> float:
    """Seconds in which a chip's tokens reach their experts and come back, all layers.

    Decoding sends each copy straight to its expert's node; training and prefill keep to the few nodes that the router
    allows.
    """
    nodes = chips / chip.node
    total = 0.0
    for layer in model.layers:
        ffn = layer.ffn
        if ffn.n_experts:
            each = model.d_model * (min(2.0, BYTES[weights]) + 2.0) * tokens * layer.count
            inside = max(chip.link, chip.network) / 2 * 1e9 * eff.link
            if nodes <= 1:
                total += each * ffn.n_active * (1 - 1 / chips) / inside
                continue
            visited = nodes * (1 - (1 - 1 / nodes) ** ffn.n_active)
            total += each * visited * (1 - 1 / nodes) / (chip.network / 2 * 1e9 * eff.link)
    return total


def _all_reduce(model: Outline, chip: Chip, chips: int, tokens: float, eff: Efficiency) -> float:
    """Two sums of the hidden state in each layer, over tensor-parallel chips."""
    if chips == 1:
        return 0.0
    link = (chip.link if chips <= chip.node and chip.link else chip.network) / 2 * 1e9 * eff.link
    each = 2 * 2.0 * (chips - 1) * tokens * model.d_model * 2 / link  # tokens of all chips pass through each of them
    return model.n_layers * (each + 2 * 10e-6)


def _advice(
    model: Outline, chip: Chip, chips: int, fewest: int, users: int, context: int, memory: dict[str, float],
    weights: str,
) -> str:  # fmt: skip
    """By how much it does not fit, and what would; `fewest` chips hold it (0: no unit does)."""
    largest = max(memory, key=lambda part: memory[part])
    help_ = [f"{fewest:,} {chip.name}"] if fewest else []
    room = chip.memory_bytes - memory["weights"] - memory["buffers"]
    if room > 0:
        fits = int(room / (memory["cache"] / users))
        help_ += [f"{fits:,} users at this context"] if fits else []
        help_ += [f"a context of {int(context * room / memory['cache']):,}"]
    elif not fewest:
        narrow = [form for form in ("fp8", "fp4") if BYTES[form] < BYTES[weights]]
        help_ += [f"weights in {' or '.join(narrow)}"] if narrow else []
    return (
        f"{model.name} for {users:,} users of {context:,} tokens needs {sum(memory.values()) / 1e9:,.1f} GB on each of"
        f" {chips:,} {chip.name}, which have {chip.memory_gb:g}; most of it is {largest}; what would fit:"
        f" {', '.join(help_) or 'a chip with more memory'}"
    )
