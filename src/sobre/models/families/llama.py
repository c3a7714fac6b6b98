"""Llama 3 and 3.1, dense: grouped-query attention, halves rotated, long context by Llama's own rope scaling or YaRN."""

from typing import Any

from sobre.models.config import DenseConfig, GQAConfig, ModelConfig
from sobre.models.families.base import (
    FFN,
    FFN_BIASES,
    O_BIAS,
    QKV,
    QKV_BIASES,
    TRUNK,
    Family,
    HFConfig,
    gqa_keys,
    gqa_of,
    has_gqa,
    rope_of,
    trunk_keys,
    trunk_of,
)


def _to_ours(theirs: HFConfig) -> ModelConfig:
    bias = theirs.get("attention_bias", False)
    return ModelConfig(
        **trunk_of(theirs),
        attention=gqa_of(theirs, qkv_bias=bias, o_bias=bias),
        ffn=DenseConfig(d_ff=theirs["intermediate_size"]),
        ffn_bias=theirs.get("mlp_bias", False),
        rope=rope_of(theirs),
    )


def _to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    assert isinstance(cfg.attention, GQAConfig)
    assert isinstance(cfg.ffn, DenseConfig)
    biases = {"attention_bias": cfg.attention.qkv_bias, "mlp_bias": cfg.ffn_bias}
    return trunk_keys(cfg) | gqa_keys(cfg) | biases | {"intermediate_size": cfg.ffn.d_ff}


def _accepts(cfg: ModelConfig) -> bool:
    return has_gqa(cfg, qkv_bias=..., o_bias=getattr(cfg.attention, "qkv_bias", False)) and not cfg.n_mtp


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    accepts=_accepts,
    to_ours=_to_ours,
    to_theirs=_to_theirs,
    tensors=TRUNK + QKV + QKV_BIASES + O_BIAS + FFN + FFN_BIASES,
)
FAMILIES = (LLAMA,)
