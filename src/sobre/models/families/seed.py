"""Seed-OSS (ByteDance, 2025), dense: Llama's form, each bias with a switch of its own."""

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
    return ModelConfig(
        **trunk_of(theirs),
        attention=gqa_of(
            {"head_dim": 128} | dict(theirs),
            qkv_bias=theirs.get("attention_bias", True),
            o_bias=theirs.get("attention_out_bias", False),
        ),
        ffn=DenseConfig(d_ff=theirs["intermediate_size"]),
        ffn_bias=theirs.get("mlp_bias", False),
        rope=rope_of(theirs),
    )


def _to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    gqa = cfg.attention
    assert isinstance(gqa, GQAConfig)
    biases = {"attention_bias": gqa.qkv_bias, "attention_out_bias": gqa.o_bias, "mlp_bias": cfg.ffn_bias}
    return trunk_keys(cfg) | gqa_keys(cfg) | biases | {"intermediate_size": cfg.ffn.d_ff}


SEED_OSS = Family(
    model_type="seed_oss",
    architecture="SeedOssForCausalLM",
    accepts=lambda cfg: has_gqa(cfg, qkv_bias=..., o_bias=...) and not cfg.n_mtp,
    to_ours=_to_ours,
    to_theirs=_to_theirs,
    tensors=TRUNK + QKV + QKV_BIASES + O_BIAS + FFN + FFN_BIASES,
)
FAMILIES = (SEED_OSS,)
