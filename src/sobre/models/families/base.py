"""What a family is: data. How its config maps to ours, and how its tensor names map to ours.

A tensor rule is a pair of patterns, theirs and ours. `{i}` is a layer, `{m}` the layer after the last (where the MTP
module lies) and `{e}` an expert; experts are one tensor each in the files and stacked in the model. Ours may end in
`[None]`: theirs has a leading dimension of 1 more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sobre.errors import CheckpointError
from sobre.models.config import (
    DenseConfig,
    GQAConfig,
    Llama3RopeConfig,
    ModelConfig,
    MoEConfig,
    RopeConfig,
    YarnConfig,
)

HFConfig = Mapping[str, Any]
Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Family:
    """One open family of models, as Hugging Face names it."""

    model_type: str
    architecture: str
    accepts: Callable[[ModelConfig], bool]
    """Whether a model of ours can be written in this family's form."""
    to_ours: Callable[[HFConfig], ModelConfig]
    to_theirs: Callable[[ModelConfig], dict[str, Any]]
    tensors: Rules
    """(their pattern, our pattern)."""
    aliases: tuple[str, ...] = ()
    """Other model types that mean the same; read, not written."""
    copies: Rules = ()
    """Tensors that repeat another one where there is an MTP module: written for others, not read by us."""
    derived: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Name endings of tensors that follow from the config, so that nothing is lost in passing them over."""
    without: tuple[str, ...] = ()
    """Name beginnings of a part that we do not have; loaded without it, and said so."""


def biases(rules: Rules) -> Rules:
    """The same rules for `bias` in place of `weight`."""
    return tuple((theirs.replace("weight", "bias"), ours.replace("weight", "bias")) for theirs, ours in rules)


def in_layers(rules: Rules) -> Rules:
    """Rules of one layer, such as ("mlp.gate.weight", "ffn.router.weight_ED"), for every layer."""
    return tuple((f"model.layers.{{i}}.{theirs}", f"layers.{{i}}.{ours}") for theirs, ours in rules)


TRUNK: Rules = (
    ("model.embed_tokens.weight", "embed.weight"),
    ("model.norm.weight", "norm.weight"),
    ("lm_head.weight", "head.weight"),
    *in_layers(
        (
            ("input_layernorm.weight", "attn_norm.weight"),
            ("post_attention_layernorm.weight", "ffn_norm.weight"),
            ("self_attn.o_proj.weight", "attn.o.weight"),
        )
    ),
)
"""What every family shares."""
FFN = in_layers(
    (
        ("mlp.gate_proj.weight", "ffn.gate.weight"),
        ("mlp.up_proj.weight", "ffn.up.weight"),
        ("mlp.down_proj.weight", "ffn.down.weight"),
    )
)
QKV = in_layers(
    (
        ("self_attn.q_proj.weight", "attn.q.weight"),
        ("self_attn.k_proj.weight", "attn.k.weight"),
        ("self_attn.v_proj.weight", "attn.v.weight"),
    )
)
HEAD_NORMS = in_layers(
    (("self_attn.q_norm.weight", "attn.q_norm.weight"), ("self_attn.k_norm.weight", "attn.k_norm.weight"))
)
O_BIAS = in_layers((("self_attn.o_proj.bias", "attn.o.bias"),))
QKV_BIASES, FFN_BIASES = biases(QKV), biases(FFN)
EXPERTS = in_layers(
    (
        ("mlp.gate.weight", "ffn.router.weight_ED"),
        ("mlp.experts.{e}.gate_proj.weight", "ffn.gate_EFD"),
        ("mlp.experts.{e}.up_proj.weight", "ffn.up_EFD"),
        ("mlp.experts.{e}.down_proj.weight", "ffn.down_EDF"),
    )
)
ROUTER_BIAS = in_layers((("mlp.gate.e_score_correction_bias", "ffn.router.bias_E"),))
SHARED = in_layers(
    (
        ("mlp.shared_experts.gate_proj.weight", "ffn.shared.gate.weight"),
        ("mlp.shared_experts.up_proj.weight", "ffn.shared.up.weight"),
        ("mlp.shared_experts.down_proj.weight", "ffn.shared.down.weight"),
    )
)
MTP_COPIES: Rules = (
    ("model.layers.{m}.embed_tokens.weight", "embed.weight"),
    ("model.layers.{m}.shared_head.head.weight", "head.weight"),
)
"""Copies of embedding and head that releases store at the MTP layer."""


def mtp(rules: Rules) -> Rules:
    """The MTP module as DeepSeek-V3 and GLM-4.5 store it: layer n_layers, whose block follows `rules`."""
    own = (
        ("model.layers.{m}.enorm.weight", "mtp.embed_norm.weight"),
        ("model.layers.{m}.hnorm.weight", "mtp.hidden_norm.weight"),
        ("model.layers.{m}.eh_proj.weight", "mtp.proj.weight"),
        ("model.layers.{m}.shared_head.norm.weight", "mtp.norm.weight"),
    )
    return own + tuple(
        (theirs.replace("{i}", "{m}"), ours.replace("layers.{i}", "mtp.block"))
        for theirs, ours in rules
        if "{i}" in theirs
    )


def refuse(theirs: HFConfig, **supported: Any) -> None:
    """Every key must have the value that we have, where the config has the key at all; null says that it is off."""
    for key, value in supported.items():
        found = theirs.get(key, value)
        if found != value and (found is not None or value):
            name = theirs["model_type"]
            raise CheckpointError(f"{name} with {key}={theirs[key]!r} is not supported; {key}={value!r} is")


def trunk_of(theirs: HFConfig, *, tied: bool = False) -> dict[str, Any]:
    """Fields of ModelConfig that every family spells alike; `tied` is the family's default."""
    refuse(theirs, hidden_act="silu")
    return {
        "vocab_size": theirs["vocab_size"],
        "d_model": theirs["hidden_size"],
        "n_layers": theirs["num_hidden_layers"],
        "max_len": theirs["max_position_embeddings"],
        "norm_eps": theirs["rms_norm_eps"],
        "tied": theirs.get("tie_word_embeddings", tied),
        "init_std": theirs.get("initializer_range", 0.02),
    }


def trunk_keys(cfg: ModelConfig) -> dict[str, Any]:
    """The same, back, and the rope."""
    return {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.attention.n_heads,
        "max_position_embeddings": cfg.max_len,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tied,
        "initializer_range": cfg.init_std,
        "hidden_act": "silu",
        **_rope_keys(cfg),
    }


def gqa_of(theirs: HFConfig, **switches: Any) -> GQAConfig:
    """Heads, groups and head width; `switches` are the family's."""
    n_heads = theirs["num_attention_heads"]
    return GQAConfig(
        n_heads=n_heads,
        n_kv_heads=theirs.get("num_key_value_heads") or n_heads,
        head_dim=theirs.get("head_dim") or theirs["hidden_size"] // n_heads,
        **switches,
    )


def gqa_keys(cfg: ModelConfig) -> dict[str, Any]:
    assert isinstance(cfg.attention, GQAConfig)
    return {"num_key_value_heads": cfg.attention.n_kv_heads, "head_dim": cfg.attention.head_dim}


def has_gqa(cfg: ModelConfig, *, interleaved: bool = False, ffn: type = DenseConfig, **switches: Any) -> bool:
    """Whether the model has grouped-query attention with exactly these switches, and nothing a family could not say."""
    plain = {"qk_norm": False, "norm_all_heads": False, "qkv_bias": False, "o_bias": False, "rope_dim": 0} | switches
    return (
        isinstance(cfg.attention, GQAConfig)
        and isinstance(cfg.ffn, ffn)
        and all(value is ... or getattr(cfg.attention, key) == value for key, value in plain.items())
        and cfg.rope.interleaved == interleaved
        and cfg.residual is None
    )


def rope_dim_of(theirs: HFConfig, head_dim: int, default: float) -> int:
    """Rotated numbers of a head: partial_rotary_factor, or `rotary_dim` in older configs; 0 for the whole head."""
    found: HFConfig = theirs.get("rope_parameters") or {}
    part = found.get("partial_rotary_factor", theirs.get("partial_rotary_factor"))
    if part is None:
        part = theirs["rotary_dim"] / head_dim if theirs.get("rotary_dim") else default
    width = int(head_dim * part)
    return 0 if width == head_dim else width


def rope_of(theirs: HFConfig, *, interleaved: bool = False, theta: float = 10_000.0) -> RopeConfig:
    """Base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    Raises CheckpointError for a scaling that we do not have: one passed over in silence answers nonsense.
    """
    found: HFConfig = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    kind = found.get("rope_type", found.get("type", "default"))
    theta = float(found.get("rope_theta") or theirs.get("rope_theta") or theta)
    if kind == "default":
        return RopeConfig(theta=theta, interleaved=interleaved)
    original_len = found.get("original_max_position_embeddings") or theirs["max_position_embeddings"]
    if kind == "yarn":
        if not found.get("truncate", True):
            raise CheckpointError(f"{theirs['model_type']}: yarn with truncate=false is not supported")
        yarn = YarnConfig(
            factor=float(found["factor"]),
            original_len=original_len,
            beta_fast=float(found.get("beta_fast") or 32),
            beta_slow=float(found.get("beta_slow") or 1),
            mscale=float(found.get("mscale") or 1.0),
            mscale_all_dim=float(found.get("mscale_all_dim") or 0.0),
            table_factor=found.get("attention_factor"),
        )
        return RopeConfig(theta=theta, interleaved=interleaved, yarn=yarn)
    if kind == "llama3":
        llama3 = Llama3RopeConfig(
            factor=float(found["factor"]),
            low_factor=float(found["low_freq_factor"]),
            high_factor=float(found["high_freq_factor"]),
            original_len=original_len,
        )
        return RopeConfig(theta=theta, interleaved=interleaved, llama3=llama3)
    raise CheckpointError(f"{theirs['model_type']}: rope scaling {kind!r} is not supported; yarn, llama3 and none are")


def _rope_keys(cfg: ModelConfig) -> dict[str, Any]:
    """Both spellings of the rope, so that older and newer readers find theirs."""
    rope, gqa = cfg.rope, cfg.attention
    scaling: dict[str, Any] = {}
    if rope.yarn is not None:
        scaling = {
            "rope_type": "yarn",
            "factor": rope.yarn.factor,
            "original_max_position_embeddings": rope.yarn.original_len,
            "beta_fast": rope.yarn.beta_fast,
            "beta_slow": rope.yarn.beta_slow,
            "mscale": rope.yarn.mscale,
            "mscale_all_dim": rope.yarn.mscale_all_dim,
        }
        if rope.yarn.table_factor is not None:
            scaling["attention_factor"] = rope.yarn.table_factor
    elif rope.llama3 is not None:
        scaling = {
            "rope_type": "llama3",
            "factor": rope.llama3.factor,
            "low_freq_factor": rope.llama3.low_factor,
            "high_freq_factor": rope.llama3.high_factor,
            "original_max_position_embeddings": rope.llama3.original_len,
        }
    part: dict[str, Any] = {}
    if isinstance(gqa, GQAConfig) and gqa.rope_dim:
        part = {"partial_rotary_factor": gqa.rope_dim / gqa.head_dim}
    whole = {"rope_type": "default"} | scaling | part | {"rope_theta": rope.theta}
    old = {"rope_scaling": scaling} if scaling else {}
    return {"rope_parameters": whole, "rope_theta": rope.theta, **old, **part}


def deepseek_moe(theirs: HFConfig, **switches: Any) -> DenseConfig | MoEConfig:
    """The feed-forward of configs with DeepSeek's keys; dense where no layer routes."""
    refuse(theirs, moe_layer_freq=1)
    if theirs["first_k_dense_replace"] >= theirs["num_hidden_layers"]:
        return DenseConfig(d_ff=theirs["intermediate_size"])
    found = {
        "n_experts": theirs["n_routed_experts"],
        "n_active": theirs["num_experts_per_tok"],
        "d_expert": theirs["moe_intermediate_size"],
        "n_shared": theirs["n_shared_experts"] or 0,
        "n_groups": theirs.get("n_group") or 1,
        "n_active_groups": theirs.get("topk_group") or 1,
        "route_scale": float(theirs["routed_scaling_factor"]),
        "norm_weights": theirs["norm_topk_prob"],
        "n_dense_layers": theirs["first_k_dense_replace"],
        "d_ff": theirs["intermediate_size"],
        "bias_speed": 0.0,
    }
    return MoEConfig(**(found | switches))


def deepseek_moe_keys(cfg: ModelConfig) -> dict[str, Any]:
    """A dense model is written as one whose first n_layers are dense."""
    moe = cfg.ffn if isinstance(cfg.ffn, MoEConfig) else MoEConfig(n_dense_layers=cfg.n_layers, d_ff=cfg.ffn.d_ff)
    return {
        "n_routed_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_active,
        "moe_intermediate_size": moe.d_expert,
        "n_shared_experts": moe.n_shared,
        "n_group": moe.n_groups,
        "topk_group": moe.n_active_groups,
        "routed_scaling_factor": moe.route_scale,
        "norm_topk_prob": moe.norm_weights,
        "first_k_dense_replace": moe.n_dense_layers,
        "moe_layer_freq": 1,
        "intermediate_size": moe.d_ff,
    }
