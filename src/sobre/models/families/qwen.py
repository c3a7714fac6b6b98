"""Qwen: 2 and 2.5 (biases on queries, keys and values), 3 (a norm on every head), 3-MoE (softmax routing, no bias).

The window of attention that their configs can ask for is refused: no released Qwen2.5 or Qwen3 uses it.
"""

from typing import Any

from sobre.models.config import DenseConfig, GQAConfig, ModelConfig, MoEConfig
from sobre.models.families.base import (
    EXPERTS,
    FFN,
    HEAD_NORMS,
    O_BIAS,
    QKV,
    QKV_BIASES,
    TRUNK,
    Family,
    HFConfig,
    gqa_keys,
    gqa_of,
    has_gqa,
    refuse,
    rope_of,
    trunk_keys,
    trunk_of,
)


def _qwen2_to_ours(theirs: HFConfig) -> ModelConfig:
    refuse(theirs, use_sliding_window=False)
    return ModelConfig(
        **trunk_of(theirs),
        attention=gqa_of(theirs, qkv_bias=True),
        ffn=DenseConfig(d_ff=theirs["intermediate_size"]),
        rope=rope_of(theirs),
    )


def _qwen3_to_ours(theirs: HFConfig) -> ModelConfig:
    refuse(theirs, use_sliding_window=False)
    return ModelConfig(
        **trunk_of(theirs),
        attention=_normed(theirs),
        ffn=DenseConfig(d_ff=theirs["intermediate_size"]),
        rope=rope_of(theirs),
    )


def _qwen3_moe_to_ours(theirs: HFConfig) -> ModelConfig:
    refuse(theirs, use_sliding_window=False)
    every, n_layers = theirs.get("decoder_sparse_step", 1), theirs["num_hidden_layers"]
    alone = theirs.get("mlp_only_layers") or ()
    n_experts = theirs["num_local_experts"] if "num_local_experts" in theirs else theirs["num_experts"]
    moe = MoEConfig(
        n_experts=n_experts,
        n_active=theirs["num_experts_per_tok"],
        d_expert=theirs["moe_intermediate_size"],
        n_shared=0,
        score="softmax",
        biased=False,
        norm_weights=theirs["norm_topk_prob"],
        n_dense_layers=0,
        dense_layers=tuple(layer for layer in range(n_layers) if layer in alone or (layer + 1) % every),
        d_ff=theirs["intermediate_size"],
        bias_speed=0.0,
    )
    return ModelConfig(**trunk_of(theirs), attention=_normed(theirs), ffn=moe, rope=rope_of(theirs))


def _normed(theirs: HFConfig) -> GQAConfig:
    bias = theirs.get("attention_bias", False)
    # a config of transformers that leaves head_dim out means 128 in Qwen3 and hidden_size / heads in Qwen3-MoE
    default = 128 if theirs["model_type"] == "qwen3" else None
    return gqa_of({"head_dim": default} | dict(theirs), qk_norm=True, qkv_bias=bias, o_bias=bias)


def _to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    assert isinstance(cfg.attention, GQAConfig)
    return {**trunk_keys(cfg), **gqa_keys(cfg), "intermediate_size": cfg.ffn.d_ff, "use_sliding_window": False}


def _qwen3_to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    assert isinstance(cfg.attention, GQAConfig)
    return _to_theirs(cfg) | {"attention_bias": cfg.attention.qkv_bias}


def _qwen3_moe_to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    moe = cfg.ffn
    assert isinstance(moe, MoEConfig)
    dense = [layer for layer in range(cfg.n_layers) if not cfg.is_moe_layer(layer)]
    return _qwen3_to_theirs(cfg) | {
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_active,
        "moe_intermediate_size": moe.d_expert,
        "norm_topk_prob": moe.norm_weights,
        "mlp_only_layers": dense,
        "decoder_sparse_step": 1,
    }


def _is_qwen2(cfg: ModelConfig) -> bool:
    return has_gqa(cfg, qkv_bias=True) and not cfg.n_mtp and not cfg.ffn_bias


def _is_qwen3(cfg: ModelConfig, ffn: type = DenseConfig) -> bool:
    bias = getattr(cfg.attention, "qkv_bias", False)
    fits = has_gqa(cfg, ffn=ffn, qk_norm=True, qkv_bias=..., o_bias=bias)
    return fits and not cfg.n_mtp and not cfg.ffn_bias


def _is_qwen3_moe(cfg: ModelConfig) -> bool:
    moe = cfg.ffn
    return (
        _is_qwen3(cfg, MoEConfig)
        and isinstance(moe, MoEConfig)
        and (moe.score, moe.biased, moe.n_shared, moe.n_groups, moe.route_scale) == ("softmax", False, 0, 1, 1.0)
    )


QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    accepts=_is_qwen2,
    to_ours=_qwen2_to_ours,
    to_theirs=_to_theirs,
    tensors=TRUNK + QKV + QKV_BIASES + FFN,
)
QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    accepts=_is_qwen3,
    to_ours=_qwen3_to_ours,
    to_theirs=_qwen3_to_theirs,
    tensors=TRUNK + QKV + HEAD_NORMS + QKV_BIASES + O_BIAS + FFN,
)
QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    accepts=_is_qwen3_moe,
    to_ours=_qwen3_moe_to_ours,
    to_theirs=_qwen3_moe_to_theirs,
    tensors=TRUNK + QKV + HEAD_NORMS + QKV_BIASES + O_BIAS + FFN + EXPERTS,
)
FAMILIES = (QWEN2, QWEN3, QWEN3_MOE)
