"""How long a training step takes, part by part: what moves and what is computed (`work`), then how fast (`seconds`).

Every matrix product takes its FLOPs at a share of the chip's rate plus its bytes at the memory's bandwidth: real
kernels overlap the two badly, and the sum explains why a chip with four times the arithmetic and less than twice the
bandwidth is not four times as fast, and why narrow experts are slower than wide layers. Collectives move what their
definitions say over the slowest link on their way. All counts are for one chip and one step.
"""

from dataclasses import dataclass
from math import inf

from sobre.plan.chips import BYTES, Chip
from sobre.plan.efficiency import (
    CHECKPOINT_SHARE,
    COMMUNICATION_UNITS,
    FAILURES_PER_CHIP_HOUR,
    HOURS_PER_FAILURE,
    Efficiency,
)
from sobre.plan.layout import Layout, held, n_micro_batches
from sobre.plan.outline import Layer, Outline
from sobre.plan.schedule import Durations, bubble

PARTS = ("matrices", "experts", "attention", "elementwise", "tensor", "all_to_all", "data", "bubble", "optimizer")
"""The parts of a step's time; jitter, restarts and checkpoints come on top."""


@dataclass(frozen=True)
class Products:
    """Matrix products of one kind: FLOPs, and bytes if each operand moved once."""

    flops: float = 0.0
    bytes: float = 0.0
    precision: str = "bf16"


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """What one chip does in one step."""

    dense: Products
    head: Products
    experts: Products
    attention: float
    """FLOPs that are executed; the backward pass of a fused kernel makes its scores again."""
    elementwise: float
    """Bytes of activations, one pass."""
    tensor_bytes: float
    expert_link_bytes: float
    expert_network_bytes: float
    data_link_bytes: float
    data_network_bytes: float
    optimizer_bytes: float
    bubble_share: float
    """Idle over busy time."""
    units: float
    """Share of the chip's units left for computing."""
    hidden_experts: bool
    """The schedule runs the all-to-all of one micro-batch beside the computation of another."""
    tensor_on_link: bool
    waiting: int
    """Chips that wait for each other."""


def work(model: Outline, chip: Chip, layout: Layout, *, seq_len: int, batch_tokens: float, precision: str) -> StepWork:
    """Count the work of one chip in one step."""
    n_micro = n_micro_batches(layout, batch_tokens, seq_len)
    tokens = layout.micro_batch * seq_len / layout.context
    passes = 4 if layout.recompute == "full" else 3
    wide, fmt = formats(chip, precision)
    fp8 = fmt != wide
    layers = [*model.layers, *([model.mtp] if model.mtp else [])]
    per_chip = n_micro / layout.pipeline
    dense, experts = Products(precision=fmt), Products(precision=fmt)
    attention = elementwise = tensor = a2a_link = a2a_net = 0.0
    for layer in layers:
        times = layer.count * per_chip
        dense = add(dense, dense_products(layer, model.d_model, tokens, layout.tensor, passes * times, fmt))
        experts = add(experts, expert_products(layer, model.d_model, tokens, layout, passes * times, fmt))
        flops = layer.attention.sequence_flops(seq_len) * layout.micro_batch / layout.context / layout.tensor
        attention += times * flops * (passes + 0.5)
        # what enters and leaves the matrices; the bytes of one pass, and the casts to 8 bits
        width = moved_numbers(layer, model.d_model) / layout.tensor
        elementwise += times * tokens * width * passes * (BYTES[wide] + (1.0 if fp8 else 0.0))
        if layout.tensor > 1:
            once = 2.0 * (layout.tensor - 1) / layout.tensor * tokens * model.d_model * 2
            tensor += times * once * 2 * (3 if layout.recompute == "full" else 2)
        link, network = all_to_all_bytes(layer, model.d_model, tokens / layout.tensor, layout, chip, fp8)
        a2a_link, a2a_net = a2a_link + times * link, a2a_net + times * network
    heads = (2 if model.mtp else 1) * per_chip
    head = product(tokens, model.d_model, model.vocab_size / layout.tensor, 3 * heads, wide)
    if model.mtp:
        dense = add(dense, product(tokens, 2 * model.d_model, model.d_model / layout.tensor, passes * per_chip, fmt))
    data_link, data_net = _data_bytes(model, layout, chip, n_micro)
    turn = turns(layout)
    idle = bubble(layout.schedule, layout.pipeline, turn, layout.chunks)
    crosses = layout.expert * layout.tensor > chip.node and model.is_moe
    folded = layout.schedule in ("dualpipe", "dualpipev")
    return StepWork(
        dense=dense,
        head=head,
        experts=experts,
        attention=attention,
        elementwise=elementwise,
        tensor_bytes=tensor,
        expert_link_bytes=a2a_link,
        expert_network_bytes=a2a_net,
        data_link_bytes=data_link,
        data_network_bytes=data_net,
        optimizer_bytes=28.0 * sum(numbers / (n if layout.zero else 1) for numbers, n, _ in _copies(model, layout)),
        bubble_share=idle / ((turn.forward + turn.backward + turn.weight) * n_micro),
        units=1 - COMMUNICATION_UNITS if folded and crosses else 1.0,
        hidden_experts=folded,
        tensor_on_link=layout.tensor <= chip.node,
        waiting=layout.chips,
    )


def turns(layout: Layout) -> Durations:
    """What a micro-batch costs forward and backward, over a forward pass."""
    return Durations(1.0, 1.0 if layout.recompute != "full" else 4 / 3, 1.0)


def seconds(load: StepWork, chip: Chip, eff: Efficiency) -> dict[str, float]:
    """Seconds of a step by part."""
    eff = eff.where(chip.measured)
    rate, memory = eff.matrix * load.units, chip.bytes_per_s

    def products(one: Products) -> float:
        return one.flops / (chip.peak(one.precision) * rate) + eff.traffic * one.bytes / memory

    link, network = _bytes_per_s(chip, eff)
    parts = {
        "matrices": products(load.dense) + products(load.head),
        "experts": products(load.experts),
        "attention": load.attention / (chip.peak(load.head.precision) * eff.attention * load.units),
        "elementwise": eff.elementwise * load.elementwise / memory,
        "tensor": load.tensor_bytes / (link if load.tensor_on_link else network),
    }
    busy = sum(parts.values())
    to_all = load.expert_link_bytes / link + load.expert_network_bytes / network
    parts["all_to_all"] = max(0.0, to_all - busy * (1.0 if load.hidden_experts else eff.overlap))
    busy += parts["all_to_all"]
    parts["data"] = max(0.0, exchange(load, chip, eff) - busy * eff.overlap)
    parts["bubble"] = busy * load.bubble_share
    parts["optimizer"] = load.optimizer_bytes / memory
    return parts


def exchange(load: StepWork, chip: Chip, eff: Efficiency) -> float:
    """Seconds in which gradients are summed and weights put together again, if nothing else is done meanwhile."""
    link, network = _bytes_per_s(chip, eff.where(chip.measured))
    return load.data_link_bytes / link + load.data_network_bytes / network


def _bytes_per_s(chip: Chip, eff: Efficiency) -> tuple[float, float]:
    """One way over a link and over the network; infinite where there is none, for nothing is sent over it then."""
    one_way = eff.link * 1e9 / 2
    return (max(chip.link, chip.network) or inf) * one_way, (chip.network or inf) * one_way


def formats(chip: Chip, precision: str) -> tuple[str, str]:
    """What is no matrix product is kept in, and what matrix products run in: a narrow format where it is faster."""
    wide = "fp32" if "fp32" in (precision, chip.usual) else "bf16"
    narrow = precision in ("fp8", "fp4", "int8") and chip.peak(precision) > chip.peak(wide)
    return wide, precision if narrow else wide


def overhead(chips: int, eff: Efficiency) -> float:
    """Factor on the time of the steps: chips that wait for the slowest, restarts, checkpoints."""
    doublings = max(0, chips - 1).bit_length()
    restarts = FAILURES_PER_CHIP_HOUR * chips * HOURS_PER_FAILURE
    return (1 + eff.jitter * doublings) * (1 + restarts) * (1 + CHECKPOINT_SHARE)


def product(m: float, k: float, n: float, times: float, precision: str) -> Products:
    """An (m, k) by (k, n) product, `times` over: forward, gradient of inputs, gradient of weights are alike."""
    size = BYTES[precision]
    return Products(2 * m * k * n * times, (size * (m * k + k * n) + max(2.0, size) * m * n) * times, precision)


def add(one: Products, other: Products) -> Products:
    return Products(one.flops + other.flops, one.bytes + other.bytes, one.precision)


def dense_products(layer: Layer, d: int, tokens: float, tensor: int, times: float, precision: str) -> Products:
    """Attention's projections and what every token visits of the feed-forward part."""
    found = product(tokens, d, layer.attention.matrix / d / tensor, times, precision)
    if layer.ffn.dense:
        found = add(found, product(tokens, d, layer.ffn.dense / d / tensor, times, precision))
    return found


def expert_products(layer: Layer, d: int, tokens: float, layout: Layout, times: float, precision: str) -> Products:
    """Routed experts: the tokens of all chips that share them, a chip's experts one product each."""
    ffn = layer.ffn
    if not ffn.n_experts:
        return Products(precision=precision)
    here = ffn.n_experts / layout.expert
    rows = tokens * ffn.n_active / layout.tensor / here
    one = product(rows, d, ffn.expert / d / ffn.n_matrices, times * here * ffn.n_matrices, precision)
    return one


def moved_numbers(layer: Layer, d: int) -> float:
    """Numbers of a token that pass through what is no matrix product."""
    ffn = layer.ffn
    wide = ffn.n_matrices * (ffn.d_inner + ffn.n_active * ffn.d_expert)
    return 6.0 * d + 2.0 * ffn.n_active * d + layer.attention.inner + wide


def all_to_all_bytes(layer: Layer, d: int, tokens: float, layout: Layout, chip: Chip, fp8: bool) -> tuple[float, float]:
    """Bytes of a chip's tokens to their experts and back, forward and backward: (over links, over the network)."""
    ffn = layer.ffn
    if not ffn.n_experts or layout.expert == 1:
        return 0.0, 0.0
    each = d * ((1.0 if fp8 else 2.0) + 2.0) * 2  # to and back, forward and backward
    nodes = max(1.0, layout.expert / chip.node)
    inside = ffn.n_active * (1 - nodes / layout.expert) * each * tokens
    if nodes <= 1:
        return min(ffn.n_active, layout.expert) * (1 - 1 / layout.expert) * each * tokens, 0.0
    # a token is sent once to each node that it visits (arXiv 2412.19437, 3.2.2)
    visited = nodes * (1 - (1 - 1 / nodes) ** ffn.n_active)
    visited = min(visited, ffn.n_active_groups or visited)
    return inside, visited * (1 - 1 / nodes) * each * tokens


def _copies(model: Outline, layout: Layout) -> list[tuple[float, int, int]]:
    """(numbers, chips that hold them, how far these are apart): of all but the experts, and of experts."""
    rest, experts = held(model, layout)
    shards = layout.data * layout.context
    apart = max(layout.expert, layout.tensor)
    return [(rest, shards, layout.tensor), (experts, max(1, shards * layout.tensor // layout.expert), apart)]


def _data_bytes(model: Outline, layout: Layout, chip: Chip, n_micro: int) -> tuple[float, float]:
    """Bytes of gradients and weights between data-parallel chips: (over links, over the network).

    16-bit gradients are scattered once in a step and 16-bit weights gathered once; in ZeRO 3 for every micro-batch.
    """
    link = network = 0.0
    for numbers, copies, apart in _copies(model, layout):
        each = 2 * 2.0 if layout.zero < 3 else 2 * 2.0 * n_micro + 2.0 * n_micro
        moved = numbers * (1 - 1 / copies) * each
        in_node = max(1, min(copies, chip.node // apart))
        link += moved if in_node > 1 else 0.0
        network += moved / in_node if copies > in_node else 0.0
    return link, network
