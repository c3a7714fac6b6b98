"""DeepSeek: V2 and V2-Lite; V3, V3.1, R1 (and Kimi K2, Moonlight, which are V3s); V3.2: MLA, DeepSeekMoE, MTP.

V2 (arXiv 2405.04434) scores experts by softmax and has no bias. Its released code either makes the weights sum to 1 or
multiplies them by routed_scaling_factor, never both; `transformers` passes over norm_topk_prob. We follow the release.
"""

from dataclasses import replace
from typing import Any

from sobre.models.config import DenseConfig, IndexerConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.models.families.base import (
    EXPERTS,
    FFN,
    MTP_COPIES,
    ROUTER_BIAS,
    SHARED,
    TRUNK,
    Family,
    HFConfig,
    deepseek_moe,
    deepseek_moe_keys,
    in_layers,
    mtp,
    refuse,
    rope_of,
    trunk_keys,
    trunk_of,
)

_MLA = in_layers(
    (
        ("self_attn.q_proj.weight", "attn.q.weight"),
        ("self_attn.q_a_proj.weight", "attn.q_down.weight"),
        ("self_attn.q_a_proj.bias", "attn.q_down.bias"),
        ("self_attn.q_a_layernorm.weight", "attn.q_norm.weight"),
        ("self_attn.q_b_proj.weight", "attn.q_up.weight"),
        ("self_attn.kv_a_proj_with_mqa.weight", "attn.kv_down.weight"),
        ("self_attn.kv_a_proj_with_mqa.bias", "attn.kv_down.bias"),
        ("self_attn.kv_a_layernorm.weight", "attn.kv_norm.weight"),
        ("self_attn.kv_b_proj.weight", "attn.kv_up.weight"),
        ("self_attn.o_proj.bias", "attn.o.bias"),
    )
)
_V2_TENSORS = TRUNK + _MLA + FFN + EXPERTS + SHARED
_V3_TENSORS = _V2_TENSORS + ROUTER_BIAS
_V32_TENSORS = _V3_TENSORS + in_layers(
    (
        ("self_attn.indexer.wq_b.weight", "attn.index.q_up.weight"),
        ("self_attn.indexer.wk.weight", "attn.index.k.weight"),
        ("self_attn.indexer.k_norm.weight", "attn.index.k_norm.weight"),
        ("self_attn.indexer.k_norm.bias", "attn.index.k_norm.bias"),
        ("self_attn.indexer.weights_proj.weight", "attn.index.weigh.weight"),
    )
)


def _mla(theirs: HFConfig) -> MLAConfig:
    return MLAConfig(
        n_heads=theirs["num_attention_heads"],
        q_rank=theirs.get("q_lora_rank") or 0,
        kv_rank=theirs["kv_lora_rank"],
        nope_dim=theirs["qk_nope_head_dim"],
        rope_dim=theirs["qk_rope_head_dim"],
        v_dim=theirs["v_head_dim"],
        bias=theirs.get("attention_bias", False),
    )


def _v2_to_ours(theirs: HFConfig) -> ModelConfig:
    refuse(theirs, scoring_func="softmax", mlp_bias=False)
    switches: dict[str, Any] = {"score": "softmax", "biased": False}
    if theirs["norm_topk_prob"] and theirs["num_experts_per_tok"] > 1:
        switches["route_scale"] = 1.0
    else:
        switches["norm_weights"] = False
    if theirs.get("topk_method", "greedy") != "group_limited_greedy":
        refuse(theirs, topk_method="greedy")
        switches |= {"n_groups": 1, "n_active_groups": 1}
    return ModelConfig(
        **trunk_of(theirs),
        attention=_mla(theirs),
        ffn=deepseek_moe(theirs, **switches),
        rope=rope_of(theirs, interleaved=True),
    )


def _v3_to_ours(theirs: HFConfig) -> ModelConfig:
    refuse(theirs, scoring_func="sigmoid", topk_method="noaux_tc")
    return ModelConfig(
        **trunk_of(theirs),
        attention=_mla(theirs),
        ffn=deepseek_moe(theirs),
        rope=rope_of(theirs, interleaved=theirs.get("rope_interleave", True)),
        n_mtp=theirs.get("num_nextn_predict_layers") or 0,
    )


def _v32_to_ours(theirs: HFConfig) -> ModelConfig:
    found = _v3_to_ours(theirs)
    indexer = IndexerConfig(n_heads=theirs["index_n_heads"], dim=theirs["index_head_dim"], n_keys=theirs["index_topk"])
    return replace(found, attention=replace(_mla(theirs), indexer=indexer))


def _to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    mla = cfg.attention
    assert isinstance(mla, MLAConfig)
    return {
        **trunk_keys(cfg),
        **deepseek_moe_keys(cfg),
        "num_key_value_heads": mla.n_heads,
        "q_lora_rank": mla.q_rank or None,
        "kv_lora_rank": mla.kv_rank,
        "qk_nope_head_dim": mla.nope_dim,
        "qk_rope_head_dim": mla.rope_dim,
        "v_head_dim": mla.v_dim,
        "attention_bias": mla.bias,
    }


def _v2_to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    grouped = isinstance(cfg.ffn, MoEConfig) and cfg.ffn.n_groups > 1
    method = "group_limited_greedy" if grouped else "greedy"
    return _to_theirs(cfg) | {"scoring_func": "softmax", "topk_method": method}


def _v3_to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    own = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "rope_interleave": cfg.rope.interleaved}
    return _to_theirs(cfg) | own | {"num_nextn_predict_layers": cfg.n_mtp}


def _v32_to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    assert isinstance(cfg.attention, MLAConfig)
    index = cfg.attention.indexer
    assert index is not None
    own = {"index_n_heads": index.n_heads, "index_head_dim": index.dim, "index_topk": index.n_keys}
    return _v3_to_theirs(cfg) | own


def _has_mla(cfg: ModelConfig) -> bool:
    later_dense = isinstance(cfg.ffn, MoEConfig) and cfg.ffn.dense_layers
    return isinstance(cfg.attention, MLAConfig) and not cfg.ffn_bias and cfg.residual is None and not later_dense


def _is_v2(cfg: ModelConfig) -> bool:
    softmax = isinstance(cfg.ffn, DenseConfig) or (cfg.ffn.score == "softmax" and not cfg.ffn.biased)
    plain = isinstance(cfg.attention, MLAConfig) and cfg.attention.indexer is None
    return plain and _has_mla(cfg) and softmax and cfg.rope.interleaved and not cfg.n_mtp


def _is_v3(cfg: ModelConfig, sparse: bool = False) -> bool:
    is_sparse = isinstance(cfg.attention, MLAConfig) and cfg.attention.indexer is not None
    return (
        is_sparse == sparse
        and _has_mla(cfg)
        and (isinstance(cfg.ffn, DenseConfig) or (cfg.ffn.score == "sigmoid" and cfg.ffn.biased))
    )


V2 = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    accepts=_is_v2,
    to_ours=_v2_to_ours,
    to_theirs=_v2_to_theirs,
    tensors=_V2_TENSORS,
)
V3 = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    accepts=_is_v3,
    to_ours=_v3_to_ours,
    to_theirs=_v3_to_theirs,
    tensors=_V3_TENSORS + mtp(_V3_TENSORS),
    aliases=("kimi_k2",),
    copies=MTP_COPIES,
)
V32 = Family(
    model_type="deepseek_v32",
    architecture="DeepseekV32ForCausalLM",
    accepts=lambda cfg: _is_v3(cfg, sparse=True) and cfg.rope.interleaved,
    to_ours=_v32_to_ours,
    to_theirs=_v32_to_theirs,
    tensors=_V32_TENSORS + mtp(_V32_TENSORS),
    copies=MTP_COPIES,
)
FAMILIES = (V3, V2, V32)
