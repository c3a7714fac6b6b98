"""GLM-4.5 and 4.5-Air (arXiv 2508.06471): grouped-query attention, half of a head rotated, and DeepSeek's experts."""

from typing import Any

from sobre.models.config import DenseConfig, GQAConfig, ModelConfig, MoEConfig
from sobre.models.families.base import (
    EXPERTS,
    FFN,
    HEAD_NORMS,
    MTP_COPIES,
    QKV,
    QKV_BIASES,
    ROUTER_BIAS,
    SHARED,
    TRUNK,
    Family,
    HFConfig,
    deepseek_moe,
    deepseek_moe_keys,
    gqa_keys,
    gqa_of,
    has_gqa,
    mtp,
    rope_dim_of,
    rope_of,
    trunk_keys,
    trunk_of,
)

_TENSORS = TRUNK + QKV + QKV_BIASES + HEAD_NORMS + FFN + EXPERTS + ROUTER_BIAS + SHARED


def _to_ours(theirs: HFConfig) -> ModelConfig:
    gqa = gqa_of(theirs)
    return ModelConfig(
        **trunk_of(theirs),
        attention=gqa_of(
            theirs,
            qk_norm=theirs.get("use_qk_norm", False),
            qkv_bias=theirs.get("attention_bias", False),
            rope_dim=rope_dim_of(theirs, gqa.head_dim, default=0.5),
        ),
        ffn=deepseek_moe(theirs),
        rope=rope_of(theirs),
        n_mtp=theirs.get("num_nextn_predict_layers") or 0,
    )


def _to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    gqa = cfg.attention
    assert isinstance(gqa, GQAConfig)
    own = {"use_qk_norm": gqa.qk_norm, "attention_bias": gqa.qkv_bias, "num_nextn_predict_layers": cfg.n_mtp}
    part = gqa.rotary_dim / gqa.head_dim
    keys = trunk_keys(cfg)
    keys["rope_parameters"]["partial_rotary_factor"] = part
    return keys | {"partial_rotary_factor": part} | gqa_keys(cfg) | deepseek_moe_keys(cfg) | own


def _accepts(cfg: ModelConfig) -> bool:
    moe = cfg.ffn
    routes = isinstance(moe, MoEConfig) and moe.score == "sigmoid" and moe.biased and not moe.dense_layers
    fits = has_gqa(cfg, ffn=type(moe), qk_norm=..., qkv_bias=..., rope_dim=...) and not cfg.ffn_bias
    return fits and (routes or (isinstance(moe, DenseConfig) and not cfg.n_mtp))  # the module's block would route


GLM4_MOE = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    accepts=_accepts,
    to_ours=_to_ours,
    to_theirs=_to_theirs,
    tensors=_TENSORS + mtp(_TENSORS),
    copies=MTP_COPIES,
)
FAMILIES = (GLM4_MOE,)
