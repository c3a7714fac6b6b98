"""From the config.json of a model in the Hugging Face layout to an outline: what families share, and how they differ.

A family of models/families is read by its own page; the others are described here by their traits, which is all that a
count needs. Every description is compared with the module that transformers builds (tests/parity/test_plan_counts.py).
Families that transformers does not have carry model_type "transformer" and write their traits beside their sizes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from sobre.errors import ConfigError
from sobre.models.families.table import FAMILIES, family_of
from sobre.plan.outline import AttentionPart, FeedForwardPart, Layer, Outline, merged, outline

HFConfig = Mapping[str, Any]

NAMES = {
    "d_model": ("hidden_size", "n_embd", "d_model"),
    "n_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "n_heads": ("num_attention_heads", "n_head", "n_heads"),
    "d_ff": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "n_experts": ("num_experts", "n_routed_experts", "num_local_experts"),
    "n_active": ("num_experts_per_tok", "num_experts_per_token"),
    "max_len": ("max_position_embeddings", "n_positions", "max_seq_len"),
}
"""How families spell the sizes that all of them have."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a family's layers have that its sizes do not tell."""

    gated: bool = True
    """Gate, up and down; False is up and down."""
    bias_key: str = "attention_bias"
    """Key of the config that says whether attention's projections have biases; empty where nothing does."""
    qkv_bias: bool = False
    o_bias: bool = False
    o_without: bool = False
    """The output's projection has no bias, whatever that key says."""
    ffn_bias: bool = False
    norm_bias: bool = False
    """LayerNorm with scale and shift; False is RMSNorm."""
    norm_numbers: bool = True
    """Norms have numbers at all."""
    norms: int = 2
    """Norms of width d_model in a layer."""
    head_norm: str = ""
    """Norms of queries and keys: "head" over one head, "all" over all heads together."""
    positions: int = 0
    """Learned positions beyond max_len that are stored; -1 means that there are none."""
    embed_norm: bool = False
    head_bias: bool = False
    tied: bool = False
    """Where the config does not say."""
    relative: bool = False
    """A d_model x d_model projection of relative positions in every layer (Transformer-XL)."""
    sinks: bool = False
    """One number per head in the denominator of the softmax (gpt-oss)."""
    experts: Literal["", "wide", "narrow"] = ""
    """Routed experts: none, of the width of a dense layer, or of a width of their own, beside layers without them."""
    expert_bias: bool = False
    router_bias: bool = False
    sparse_gate: bool = False
    """The shared expert has a gate of its own (Qwen2-MoE)."""
    kv_heads: int = 0
    """Where the config does not say; 0 means as many as there are heads."""


LLAMA = Traits(positions=-1)
FIXED = replace(LLAMA, bias_key="")
TRAITS: dict[str, Traits] = {
    "transformer": replace(LLAMA, experts="narrow"),
    "llama": LLAMA,
    "mistral": FIXED,
    "mixtral": replace(FIXED, experts="wide"),
    "qwen2": replace(FIXED, qkv_bias=True),
    "qwen3": replace(LLAMA, head_norm="head"),
    "qwen2_moe": replace(LLAMA, bias_key="qkv_bias", qkv_bias=True, o_without=True, sparse_gate=True, experts="narrow"),
    "qwen3_moe": replace(LLAMA, head_norm="head", experts="narrow"),
    "olmo": replace(LLAMA, norm_numbers=False),
    "olmo2": replace(LLAMA, head_norm="all"),
    "olmo3": replace(LLAMA, head_norm="all"),
    "olmoe": replace(LLAMA, head_norm="all", experts="wide"),
    "gemma2": replace(LLAMA, norms=4, tied=True),
    "gemma3_text": replace(LLAMA, norms=4, head_norm="head", tied=True),
    "phi3": FIXED,
    "phimoe": replace(LLAMA, norm_bias=True, qkv_bias=True, o_bias=True, experts="wide"),
    "smollm3": LLAMA,
    "gpt_oss": replace(
        LLAMA, qkv_bias=True, o_bias=True, sinks=True, experts="wide", expert_bias=True, router_bias=True
    ),
    "gpt_neox": Traits(gated=False, qkv_bias=True, o_bias=True, ffn_bias=True, norm_bias=True, positions=-1),
    "gpt2": Traits(gated=False, qkv_bias=True, o_bias=True, ffn_bias=True, norm_bias=True, tied=True),
    "opt": Traits(gated=False, qkv_bias=True, o_bias=True, ffn_bias=True, norm_bias=True, positions=2, tied=True),
    "bloom": Traits(
        gated=False, qkv_bias=True, o_bias=True, ffn_bias=True, norm_bias=True, positions=-1, embed_norm=True, tied=True
    ),
    "falcon": Traits(gated=False, norm_bias=True, positions=-1, tied=True),
    "starcoder2": Traits(
        gated=False, qkv_bias=True, o_bias=True, ffn_bias=True, norm_bias=True, positions=-1, tied=True
    ),
}


def from_hf(theirs: HFConfig, name: str = "model") -> Outline:
    """Read a config.json; raise a ConfigError that names what is missing or unknown."""
    kind = theirs.get("model_type")
    if "text_config" in theirs and kind not in TRAITS:
        return from_hf({**theirs["text_config"]}, name)
    if kind in TRAITS:
        return _read(theirs, _traits(theirs, TRAITS[str(kind)]), name)
    family = family_of(theirs)
    if family is None:
        known = sorted({*TRAITS, *(family.model_type for family in FAMILIES)})
        near = get_close_matches(str(kind), known, n=3, cutoff=0.5)
        wanted = f"perhaps {' or '.join(near)}" if near else f"known are {', '.join(known)}"
        raise ConfigError(f"{name}: the planner does not know model_type {kind!r}; {wanted}")
    return outline(family.to_ours(theirs), name)


def _size(theirs: HFConfig, what: str, default: int | None = None) -> int:
    for key in NAMES.get(what, (what,)):
        if theirs.get(key) is not None:
            value = theirs[key]
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{key}={value!r} must be a whole number above 0")
            return value
    if default is None:
        raise ConfigError(f"it lacks {' or '.join(NAMES.get(what, (what,)))}")
    return default


def _traits(theirs: HFConfig, traits: Traits) -> Traits:
    """The family's traits, changed by what the config itself says."""
    told: dict[str, Any] = {}
    kind = theirs.get("model_type")
    if traits.bias_key and theirs.get(traits.bias_key) is not None:
        biased = bool(theirs[traits.bias_key])
        told |= {"qkv_bias": biased, "o_bias": biased and not traits.o_without}
    if kind in ("llama", "smollm3"):
        told["ffn_bias"] = bool(theirs.get("mlp_bias"))
    if kind in ("gpt_neox", "starcoder2") and "use_bias" in theirs:
        told["ffn_bias"] = bool(theirs["use_bias"])
    if kind == "starcoder2" and "use_bias" in theirs:
        told |= {"qkv_bias": bool(theirs["use_bias"]), "o_bias": bool(theirs["use_bias"])}
    if kind == "falcon":
        bias = bool(theirs.get("bias"))
        told |= {"qkv_bias": bias, "o_bias": bias, "ffn_bias": bias}
        together = theirs.get("num_ln_in_parallel_attn") or (2 if theirs.get("new_decoder_architecture") else 1)
        told["norms"] = together if theirs.get("parallel_attn", True) else 2
    if kind == "opt":
        biased = bool(theirs.get("enable_bias", True))
        told |= {"qkv_bias": biased, "o_bias": biased, "ffn_bias": biased}
        told["norm_numbers"] = bool(theirs.get("layer_norm_elementwise_affine", True))
        width = theirs.get("word_embed_proj_dim")
        if width not in (None, theirs.get("hidden_size")) or not theirs.get("do_layer_norm_before", True):
            raise ConfigError(
                f"an opt with word_embed_proj_dim={width} of {theirs.get('hidden_size')}, or with norms"
                " after its layers, is not counted; one as wide as its embeddings with norms before its layers is"
            )
    if kind == "phimoe":
        told["head_bias"] = bool(theirs.get("lm_head_bias"))
    if kind == "transformer":
        told |= {key: value for key, value in theirs.get("traits", {}).items()}
    return replace(traits, **told)


def _read(theirs: HFConfig, traits: Traits, name: str) -> Outline:
    d, n_layers, vocab = _size(theirs, "d_model"), _size(theirs, "n_layers"), _size(theirs, "vocab_size")
    norm = d * (1 + traits.norm_bias) * traits.norm_numbers
    windows = _windows(theirs, n_layers)
    dense = [_is_dense(theirs, traits, i) for i in range(n_layers)]
    attention = {window: _attention(theirs, traits, d, window) for window in set(windows)}
    ffn = {is_dense: _ffn(theirs, traits, d, is_dense) for is_dense in set(dense)}
    layers = tuple(
        Layer(attention=attention[windows[i]], ffn=ffn[dense[i]], norms=traits.norms * norm) for i in range(n_layers)
    )
    tied = theirs.get("tie_word_embeddings")
    tied = traits.tied if tied is None else bool(tied)
    positions = 0 if traits.positions < 0 else _size(theirs, "max_len") + traits.positions
    return Outline(
        name=name,
        d_model=d,
        vocab_size=vocab,
        layers=merged(layers),
        embed=(vocab + positions) * d + traits.embed_norm * norm,
        head=(0 if tied else vocab * d) + traits.head_bias * vocab,
        norms=norm,
    )


def _windows(theirs: HFConfig, n_layers: int) -> list[int]:
    """Window of each layer's attention; 0 where it sees everything."""
    window = theirs.get("sliding_window") or 0
    kinds = theirs.get("layer_types")
    if kinds:
        return [window if kind == "sliding_attention" else 0 for kind in kinds][:n_layers]
    if theirs.get("model_type") == "gemma2":
        return [0 if i % 2 else window for i in range(n_layers)]
    if theirs.get("model_type") == "gemma3_text":
        every = theirs.get("sliding_window_pattern") or 6
        return [0 if (i + 1) % every == 0 else window for i in range(n_layers)]
    if theirs.get("model_type") in ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe") and not theirs.get(
        "use_sliding_window"
    ):
        window = 0
    return [window] * n_layers


def _attention(theirs: HFConfig, traits: Traits, d: int, window: int) -> AttentionPart:
    n_heads = _size(theirs, "n_heads")
    n_kv = _kv_heads(theirs, traits, n_heads)
    head = _size(theirs, "head_dim", d // n_heads)
    if n_heads % n_kv:
        raise ConfigError(f"{n_heads} heads are not a multiple of {n_kv} key heads")
    n_q, n_k = n_heads * head, n_kv * head
    matrix = 2 * d * n_q + 2 * d * n_k + (d * d if traits.relative else 0)
    extra = traits.qkv_bias * (n_q + 2 * n_k) + traits.o_bias * d + traits.sinks * n_heads
    if traits.head_norm:
        extra += 2 * head if traits.head_norm == "head" else n_q + n_k
    return AttentionPart(
        kind="sliding" if window else "full",
        n_heads=n_heads,
        numbers=matrix + extra,
        matrix=matrix,
        inner=2 * (n_q + n_k),
        pair=4.0 * n_q,
        pair_cached=4.0 * n_q,
        reach=window,
        cache=2 * n_k,
    )


def _kv_heads(theirs: HFConfig, traits: Traits, n_heads: int) -> int:
    if theirs.get("model_type") == "falcon":
        if theirs.get("new_decoder_architecture"):
            return int(theirs.get("num_kv_heads") or n_heads)
        return 1 if theirs.get("multi_query", True) else n_heads
    return int(theirs.get("num_key_value_heads") or traits.kv_heads or n_heads)


def _ffn(theirs: HFConfig, traits: Traits, d: int, is_dense: bool) -> FeedForwardPart:
    n_experts = _size(theirs, "n_experts", 1) if traits.experts and theirs.get("num_experts") != 0 else 1
    if n_experts == 1 or is_dense:
        d_ff = _size(theirs, "intermediate_size_mlp", _size(theirs, "d_ff", 4 * d))
        return _plain_ffn(d, d_ff, traits)
    n_active = _size(theirs, "n_active")
    if n_active > n_experts:
        raise ConfigError(f"{n_active} active experts of {n_experts}")
    d_expert = _size(theirs, "d_ff", 4 * d)
    shared_width = 0
    if traits.experts == "narrow":
        d_expert = _size(theirs, "moe_intermediate_size", d_expert)
        own = traits.sparse_gate or theirs.get("model_type") == "transformer"
        shared_width = int(theirs.get("shared_expert_intermediate_size") or 0) if own else 0
        if not shared_width and theirs.get("model_type") == "transformer":
            shared_width = int(theirs.get("n_shared_experts") or theirs.get("num_shared_experts") or 0) * d_expert
    n_matrices = 3 if traits.gated else 2
    expert = n_matrices * d * d_expert
    shared = n_matrices * d * shared_width
    router = n_experts * d
    gate = d if traits.sparse_gate and shared_width else 0
    biases = n_experts * traits.router_bias + traits.expert_bias * n_experts * (2 * d_expert + d)
    return FeedForwardPart(
        numbers=n_experts * expert + shared + router + gate + biases,
        dense=shared + router + gate,
        d_inner=shared_width,
        n_experts=n_experts,
        n_active=n_active,
        expert=expert,
        d_expert=d_expert,
        n_matrices=n_matrices,
    )


def _is_dense(theirs: HFConfig, traits: Traits, index: int) -> bool:
    """Whether a layer of a mixture has no experts."""
    if traits.experts != "narrow":
        return False
    first = int(theirs.get("first_k_dense_replace") or 0) if theirs.get("model_type") == "transformer" else 0
    step = int(theirs.get("decoder_sparse_step") or theirs.get("interleave_moe_layer_step") or 1)
    return index < first or index in (theirs.get("mlp_only_layers") or ()) or (index + 1) % step != 0


def _plain_ffn(d: int, d_ff: int, traits: Traits) -> FeedForwardPart:
    n_matrices = 3 if traits.gated else 2
    matrix = n_matrices * d * d_ff
    biases = traits.ffn_bias * (d + (n_matrices - 1) * d_ff)
    return FeedForwardPart(numbers=matrix + biases, dense=matrix, d_inner=d_ff, n_matrices=n_matrices)
