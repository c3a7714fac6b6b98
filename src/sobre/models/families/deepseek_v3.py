"""DeepSeek-V3 and R1 (and Kimi K2, Moonlight, which use the same class): MLA, DeepSeekMoE, MTP.

A model of ours with MLA and dense feed-forward is written as one whose first n_layers are dense.
The MTP module lies in the files as layer n_layers, with copies of embedding and head, as in DeepSeek's release.
"""

from typing import Any

from sobre.errors import CheckpointError
from sobre.models.config import DenseConfig, MLAConfig, ModelConfig, MoEConfig, RopeConfig, YarnConfig
from sobre.models.families.base import TRUNK, Family, HFConfig, plain_rope, rope_theta, trunk_keys

_ATTENTION = (
    ("self_attn.q_proj.weight", "attn.q.weight"),
    ("self_attn.q_a_proj.weight", "attn.q_down.weight"),
    ("self_attn.q_a_layernorm.weight", "attn.q_norm.weight"),
    ("self_attn.q_b_proj.weight", "attn.q_up.weight"),
    ("self_attn.kv_a_proj_with_mqa.weight", "attn.kv_down.weight"),
    ("self_attn.kv_a_layernorm.weight", "attn.kv_norm.weight"),
    ("self_attn.kv_b_proj.weight", "attn.kv_up.weight"),
)
_MOE = (
    ("mlp.gate.weight", "ffn.router.weight_ED"),
    ("mlp.gate.e_score_correction_bias", "ffn.router.bias_E"),
    ("mlp.experts.{e}.gate_proj.weight", "ffn.gate_EFD"),
    ("mlp.experts.{e}.up_proj.weight", "ffn.up_EFD"),
    ("mlp.experts.{e}.down_proj.weight", "ffn.down_EDF"),
    ("mlp.shared_experts.gate_proj.weight", "ffn.shared.gate.weight"),
    ("mlp.shared_experts.up_proj.weight", "ffn.shared.up.weight"),
    ("mlp.shared_experts.down_proj.weight", "ffn.shared.down.weight"),
)
_BLOCK = tuple((f"model.layers.{{i}}.{theirs}", f"layers.{{i}}.{ours}") for theirs, ours in _ATTENTION + _MOE)
_MTP_ONLY = (
    ("model.layers.{m}.enorm.weight", "mtp.embed_norm.weight"),
    ("model.layers.{m}.hnorm.weight", "mtp.hidden_norm.weight"),
    ("model.layers.{m}.eh_proj.weight", "mtp.proj.weight"),
    ("model.layers.{m}.shared_head.norm.weight", "mtp.norm.weight"),
)
_MTP_BLOCK = tuple(
    (theirs.replace("{i}", "{m}"), ours.replace("layers.{i}", "mtp.block"))
    for theirs, ours in TRUNK + _BLOCK
    if "{i}" in theirs
)
MTP_COPIES = ("model.layers.{m}.embed_tokens.weight", "model.layers.{m}.shared_head.head.weight")
"""Copies that the release stores at the MTP layer; written for others, never read by us."""


def _to_ours(theirs: HFConfig) -> ModelConfig:
    if theirs.get("rope_interleave", True) is not True:
        raise CheckpointError("deepseek_v3 with rope_interleave=false is not supported; released weights interleave")
    if theirs.get("attention_bias"):
        raise CheckpointError("deepseek_v3 with attention_bias=true is not supported; released weights have none")
    dense_layers = theirs["first_k_dense_replace"]
    moe = MoEConfig(
        n_experts=theirs["n_routed_experts"],
        n_active=theirs["num_experts_per_tok"],
        d_expert=theirs["moe_intermediate_size"],
        n_shared=theirs["n_shared_experts"] or 0,
        n_groups=theirs["n_group"] or 1,
        n_active_groups=theirs["topk_group"] or 1,
        route_scale=float(theirs["routed_scaling_factor"]),
        norm_weights=theirs["norm_topk_prob"],
        n_dense_layers=dense_layers,
        d_ff=theirs["intermediate_size"],
        bias_speed=0.0,
    )
    all_dense = dense_layers >= theirs["num_hidden_layers"]
    return ModelConfig(
        vocab_size=theirs["vocab_size"],
        d_model=theirs["hidden_size"],
        n_layers=theirs["num_hidden_layers"],
        attention=MLAConfig(
            n_heads=theirs["num_attention_heads"],
            q_rank=theirs.get("q_lora_rank") or 0,
            kv_rank=theirs["kv_lora_rank"],
            nope_dim=theirs["qk_nope_head_dim"],
            rope_dim=theirs["qk_rope_head_dim"],
            v_dim=theirs["v_head_dim"],
        ),
        ffn=DenseConfig(d_ff=theirs["intermediate_size"]) if all_dense else moe,
        rope=RopeConfig(theta=rope_theta(theirs), interleaved=True, yarn=_yarn(theirs)),
        max_len=theirs["max_position_embeddings"],
        norm_eps=theirs["rms_norm_eps"],
        tied=theirs.get("tie_word_embeddings", False),
        n_mtp=theirs.get("num_nextn_predict_layers") or 0,
        init_std=theirs.get("initializer_range", 0.02),
    )


def _yarn(theirs: HFConfig) -> YarnConfig | None:
    scaling = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise CheckpointError(f"deepseek_v3: rope scaling {kind!r} is not supported; yarn and none are")
    return YarnConfig(
        factor=float(scaling["factor"]),
        original_len=scaling["original_max_position_embeddings"],
        beta_fast=float(scaling.get("beta_fast", 32)),
        beta_slow=float(scaling.get("beta_slow", 1)),
        mscale=float(scaling.get("mscale", 1.0)),
        mscale_all_dim=float(scaling.get("mscale_all_dim", 0.0)),
    )


def _to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    mla = cfg.attention
    assert isinstance(mla, MLAConfig)
    moe = cfg.ffn if isinstance(cfg.ffn, MoEConfig) else MoEConfig(n_dense_layers=cfg.n_layers, d_ff=cfg.ffn.d_ff)
    return trunk_keys(cfg) | {
        "num_key_value_heads": mla.n_heads,
        "q_lora_rank": mla.q_rank or None,
        "kv_lora_rank": mla.kv_rank,
        "qk_nope_head_dim": mla.nope_dim,
        "qk_rope_head_dim": mla.rope_dim,
        "v_head_dim": mla.v_dim,
        "n_routed_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_active,
        "moe_intermediate_size": moe.d_expert,
        "n_shared_experts": moe.n_shared,
        "n_group": moe.n_groups,
        "topk_group": moe.n_active_groups,
        "routed_scaling_factor": moe.route_scale,
        "norm_topk_prob": moe.norm_weights,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "first_k_dense_replace": moe.n_dense_layers,
        "moe_layer_freq": 1,
        "intermediate_size": moe.d_ff,
        "num_nextn_predict_layers": cfg.n_mtp,
        "attention_bias": False,
        "rope_interleave": True,
        **_rope_to_theirs(cfg.rope),
    }


def _rope_to_theirs(rope: RopeConfig) -> dict[str, Any]:
    if rope.yarn is None:
        return plain_rope(rope.theta)
    yarn = {
        "rope_type": "yarn",
        "factor": rope.yarn.factor,
        "original_max_position_embeddings": rope.yarn.original_len,
        "beta_fast": rope.yarn.beta_fast,
        "beta_slow": rope.yarn.beta_slow,
        "mscale": rope.yarn.mscale,
        "mscale_all_dim": rope.yarn.mscale_all_dim,
    }
    return {"rope_parameters": yarn | {"rope_theta": rope.theta}, "rope_scaling": yarn, "rope_theta": rope.theta}


FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    accepts=lambda cfg: isinstance(cfg.attention, MLAConfig) and cfg.rope.interleaved,
    to_ours=_to_ours,
    to_theirs=_to_theirs,
    tensors=TRUNK + _BLOCK + _MTP_ONLY + _MTP_BLOCK,
)
