"""A model as the planner sees it: what is stored, what a token is multiplied by, what it attends to and leaves behind.

An outline is made from a configuration of ours (`outline`) or from the config.json of any family (plan/hf.py), and is
all that memory, time and price are computed from. FLOPs are counted as in plan/count.py: 2 for each number of a matrix
that a token is multiplied by, the backward pass twice the forward one, attention causal.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Literal

from sobre.errors import ConfigError
from sobre.models.config import DenseConfig, GQAConfig, LightningConfig, MLAConfig, ModelConfig
from sobre.plan.count import shapes

Kind = Literal["full", "latent", "sliding", "sparse", "linear"]


@dataclass(frozen=True, kw_only=True)
class AttentionPart:
    """The attention of one layer."""

    kind: Kind
    n_heads: int
    numbers: int
    """Stored."""
    matrix: int
    """Of those, numbers in matrices that a token is multiplied by."""
    inner: int
    """Width of queries, keys, values and outputs of one token, all heads."""
    pair: float
    """FLOPs of one query with one key, where the step brings all its keys (training, prefill)."""
    pair_cached: float
    """The same with keys from the cache; differs for latent attention, which then works on the latent."""
    reach: int = 0
    """Keys that a query sees: the window of sliding attention, the choice of sparse attention; 0 is all of them."""
    index_pair: float = 0.0
    """FLOPs of sparse attention's indexer with one key; it looks at all keys."""
    recurrent: float = 0.0
    """FLOPs of a token with the state of linear attention."""
    cache: int = 0
    """Numbers that a token leaves in the cache."""
    latent: int = 0
    """Width of the cached latent that keys and values are made of; 0 where they are cached as they are."""
    expanded: int = 0
    """Width of the keys and values that are made of it, all heads."""
    state: int = 0
    """Numbers of a sequence's state, whatever its length."""

    def pairs(self, length: int) -> float:
        """(query, key) pairs of a fresh causal sequence."""
        if self.kind == "linear":
            return 0.0
        seen = min(self.reach or length, length)
        return seen * (seen + 1) / 2 + (length - seen) * seen

    def sequence_flops(self, length: int) -> float:
        """Forward FLOPs of attention itself over a fresh sequence, projections excluded."""
        every = length * (length + 1) / 2
        return self.pairs(length) * self.pair + every * self.index_pair + length * self.recurrent

    def token_flops(self, context: int) -> float:
        """FLOPs of one decoded token that sees `context` keys, its own included."""
        seen = 0 if self.kind == "linear" else min(self.reach or context, context)
        return seen * self.pair_cached + context * self.index_pair + self.recurrent

    def held(self, context: int) -> int:
        """Numbers in the cache after `context` tokens; a window keeps no more than it sees."""
        kept = min(self.reach or context, context) if self.kind == "sliding" else context
        return self.cache * kept + self.state


@dataclass(frozen=True, kw_only=True)
class FeedForwardPart:
    """The feed-forward part of one layer."""

    numbers: int
    """Stored, experts and router included."""
    dense: int
    """Numbers in matrices that every token visits: dense layer or shared experts, and the router."""
    d_inner: int
    """Inner width of that."""
    n_experts: int = 0
    n_active: int = 0
    expert: int = 0
    """Numbers in the matrices of one routed expert."""
    d_expert: int = 0
    n_active_groups: int = 0
    """Groups of experts that a token may visit; 0 means that nothing limits them."""
    n_matrices: int = 3
    """Gate, up and down; 2 without a gate."""

    @property
    def matrix(self) -> int:
        """Numbers that a token is multiplied by."""
        return self.dense + self.n_active * self.expert


@dataclass(frozen=True, kw_only=True)
class Layer:
    """`count` equal layers."""

    attention: AttentionPart
    ffn: FeedForwardPart
    norms: int
    count: int = 1

    @property
    def numbers(self) -> int:
        return self.attention.numbers + self.ffn.numbers + self.norms

    @property
    def matrix(self) -> int:
        return self.attention.matrix + self.ffn.matrix


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A whole decoder."""

    name: str
    d_model: int
    vocab_size: int
    layers: tuple[Layer, ...]
    embed: int
    """Stored numbers of embeddings, learned positions included."""
    head: int
    """Stored numbers of the output head; 0 if it is the embedding."""
    norms: int
    """Numbers outside the layers that are no embedding and no head."""
    memory: int = 0
    """Stored numbers of the n-gram memory, tables included."""
    memory_matrix: int = 0
    """Of those, numbers in matrices that a token is multiplied by."""
    memory_cache: int = 0
    """Numbers that a token leaves in the cache for the memory's convolution."""
    mtp: Layer | None = None
    mtp_extra: int = 0
    """Numbers of the MTP module beside its layer."""

    @cached_property
    def n_layers(self) -> int:
        return sum(layer.count for layer in self.layers)

    @cached_property
    def total(self) -> int:
        """Stored numbers, MTP left out as published counts do."""
        outside = self.embed + self.head + self.norms + self.memory
        return outside + sum(layer.numbers * layer.count for layer in self.layers)

    @cached_property
    def active(self) -> int:
        """Numbers in the matrices that a token is multiplied by, output head included, embedding not."""
        layers = sum(layer.matrix * layer.count for layer in self.layers)
        return layers + self.memory_matrix + self.vocab_size * self.d_model

    @cached_property
    def mtp_total(self) -> int:
        return (self.mtp.numbers if self.mtp else 0) + self.mtp_extra

    @cached_property
    def experts(self) -> int:
        """Stored numbers of routed experts."""
        return sum(layer.ffn.n_experts * layer.ffn.expert * layer.count for layer in self.layers)

    @cached_property
    def is_moe(self) -> bool:
        return self.experts > 0

    def by_part(self) -> dict[str, int]:
        """`total`, split."""
        attention = sum(layer.attention.numbers * layer.count for layer in self.layers)
        ffn = sum(layer.ffn.numbers * layer.count for layer in self.layers)
        norms = self.norms + sum(layer.norms * layer.count for layer in self.layers)
        return {
            "embed": self.embed,
            "attention": attention,
            "ffn": ffn - self.experts,
            "experts": self.experts,
            "norms": norms,
            "head": self.head,
            **({"memory": self.memory} if self.memory else {}),
        }

    def forward_flops(self, length: int) -> float:
        """A forward pass over one fresh sequence, logits of every token included."""
        attention = sum(layer.attention.sequence_flops(length) * layer.count for layer in self.layers)
        return 2.0 * self.active * length + attention

    def train_flops(self, length: int, *, recompute: bool = False) -> float:
        """Forward and backward over one fresh sequence, MTP included; `recompute` runs the layers forward twice."""
        total = 3 * self.forward_flops(length)
        if self.mtp:
            total += 3 * self._mtp_flops(length)
        if recompute:
            total += self.forward_flops(length) - 2.0 * self.vocab_size * self.d_model * length
        return total

    def flops_per_token(self, length: int) -> float:
        """Training FLOPs of one token of the main model: the figure that reports publish, MTP left out."""
        return 3 * self.forward_flops(length) / length

    def decode_flops(self, context: int) -> float:
        """One decoded token that sees `context` keys."""
        return 2.0 * self.active + sum(layer.attention.token_flops(context) * layer.count for layer in self.layers)

    def cache_numbers(self, context: int) -> int:
        """Numbers that a sequence of `context` tokens keeps."""
        return sum(layer.attention.held(context) * layer.count for layer in self.layers) + self.memory_cache * context

    def cache_bytes_per_token(self, bytes_per_number: float = 2) -> float:
        """Bytes that one token leaves in a short sequence, all layers together."""
        return bytes_per_number * (sum(one.attention.cache * one.count for one in self.layers) + self.memory_cache)

    def _mtp_flops(self, length: int) -> float:
        assert self.mtp
        matrix = self.mtp.matrix + 2 * self.d_model * self.d_model + self.vocab_size * self.d_model
        return 2.0 * matrix * length + self.mtp.attention.sequence_flops(length)


def outline(cfg: ModelConfig, name: str = "model") -> Outline:
    """The outline of a configuration of ours; its numbers are those of plan/count.py."""
    stored = shapes(cfg)
    by_block: dict[str, dict[str, tuple[int, ...]]] = {}
    for tensor, shape in stored.items():
        first, second, *rest = tensor.split(".")
        by_block.setdefault(f"{first}.{second}", {})[".".join(rest)] = shape
    layers = tuple(_layer(cfg, layer, by_block[f"layers.{layer}"]) for layer in range(cfg.n_layers))
    mtp = _layer(cfg, cfg.n_layers, by_block["mtp.block"]) if cfg.n_mtp else None
    outside = sum(prod(s) for n, s in stored.items() if n.startswith("mtp.") and not n.startswith("mtp.block."))
    memory = {tensor: shape for tensor, shape in stored.items() if tensor.startswith("memory.")}
    return Outline(
        name=name,
        d_model=cfg.d_model,
        vocab_size=cfg.vocab_size,
        layers=merged(layers),
        embed=prod(stored["embed.weight"]),
        head=prod(stored["head.weight"]) if "head.weight" in stored else 0,
        norms=prod(stored["norm.weight"]),
        memory=sum(map(prod, memory.values())),
        memory_matrix=sum(prod(shape) for tensor, shape in memory.items() if tensor.endswith(".weight") and shape[1:]),
        memory_cache=len(cfg.memory.layers) * cfg.d_model,
        mtp=mtp,
        mtp_extra=outside,
    )


def merged(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Equal layers together, in the order in which each kind first appears."""
    return tuple(replace(layer, count=count) for layer, count in Counter(layers).items())


def _layer(cfg: ModelConfig, index: int, mine: dict[str, tuple[int, ...]]) -> Layer:
    attn = {name: shape for name, shape in mine.items() if name.startswith("attn.")}
    ffn = {name: shape for name, shape in mine.items() if name.startswith("ffn.")}
    norms = sum(prod(s) for n, s in mine.items() if n.endswith("norm.weight") and not n.startswith(("attn.", "ffn.")))
    return Layer(attention=_attention(cfg, index, attn), ffn=_ffn(cfg, index, ffn), norms=norms)


def _attention(cfg: ModelConfig, layer: int, stored: dict[str, tuple[int, ...]]) -> AttentionPart:
    attn = cfg.attention
    numbers = sum(map(prod, stored.values()))
    matrix = sum(prod(shape) for shape in stored.values() if len(shape) == 2)
    if isinstance(attn, MLAConfig):
        indexer = attn.indexer
        return AttentionPart(
            kind="sparse" if indexer else "latent",
            n_heads=attn.n_heads,
            numbers=numbers,
            matrix=matrix,
            inner=attn.n_heads * 2 * (attn.qk_dim + attn.v_dim),
            pair=2.0 * attn.n_heads * (attn.qk_dim + attn.v_dim),
            pair_cached=2.0 * attn.n_heads * (attn.latent_dim + attn.kv_rank),
            reach=indexer.n_keys if indexer else 0,
            index_pair=2.0 * indexer.n_heads * indexer.dim if indexer else 0.0,
            cache=attn.cache_dim,
            latent=attn.kv_rank,
            expanded=attn.n_heads * (attn.nope_dim + attn.v_dim),
        )
    if isinstance(attn, LightningConfig):
        if layer in attn.full_layers:
            return _grouped(attn.full, numbers, matrix)
        n_q = attn.n_heads * attn.head_dim
        return AttentionPart(
            kind="linear",
            n_heads=attn.n_heads,
            numbers=numbers,
            matrix=matrix,
            inner=4 * n_q,
            pair=0.0,
            pair_cached=0.0,
            recurrent=4.0 * n_q * attn.head_dim,
            state=n_q * attn.head_dim,
        )
    if isinstance(attn, GQAConfig):
        return _grouped(attn, numbers, matrix)
    raise ConfigError(f"the planner cannot count attention of kind {attn.kind!r}")


def _grouped(attn: GQAConfig, numbers: int, matrix: int) -> AttentionPart:
    return AttentionPart(
        kind="full",
        n_heads=attn.n_heads,
        numbers=numbers,
        matrix=matrix,
        inner=2 * (attn.n_heads + attn.n_kv_heads) * attn.head_dim,
        pair=4.0 * attn.n_heads * attn.head_dim,
        pair_cached=4.0 * attn.n_heads * attn.head_dim,
        cache=attn.cache_dim,
    )


def _ffn(cfg: ModelConfig, index: int, stored: dict[str, tuple[int, ...]]) -> FeedForwardPart:
    numbers = sum(map(prod, stored.values()))
    dense = sum(prod(shape) for shape in stored.values() if len(shape) == 2)
    if isinstance(cfg.ffn, DenseConfig) or not cfg.is_moe_layer(index):
        return FeedForwardPart(numbers=numbers, dense=dense, d_inner=cfg.ffn.d_ff)
    moe = cfg.ffn
    return FeedForwardPart(
        numbers=numbers,
        dense=dense,
        d_inner=moe.n_shared * moe.d_expert,
        n_experts=moe.n_experts,
        n_active=moe.n_active,
        expert=3 * cfg.d_model * moe.d_expert,
        d_expert=moe.d_expert,
        n_active_groups=moe.n_active_groups if moe.n_groups > 1 else 0,
    )
