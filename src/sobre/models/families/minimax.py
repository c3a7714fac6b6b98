"""MiniMax-M2: grouped-query attention with one norm over all heads, experts without a shared one."""

from typing import Any

from sobre.models.config import GQAConfig, ModelConfig, MoEConfig
from sobre.models.families.base import (
    HEAD_NORMS,
    QKV,
    TRUNK,
    Family,
    HFConfig,
    gqa_keys,
    gqa_of,
    has_gqa,
    in_layers,
    refuse,
    rope_dim_of,
    rope_of,
    trunk_keys,
    trunk_of,
)

EXPERTS = in_layers(
    (
        ("block_sparse_moe.gate.weight", "ffn.router.weight_ED"),
        ("block_sparse_moe.experts.{e}.w1.weight", "ffn.gate_EFD"),
        ("block_sparse_moe.experts.{e}.w3.weight", "ffn.up_EFD"),
        ("block_sparse_moe.experts.{e}.w2.weight", "ffn.down_EDF"),
    )
)
_BIAS = in_layers((("block_sparse_moe.e_score_correction_bias", "ffn.router.bias_E"),))


def moe_of(theirs: HFConfig, **switches: Any) -> MoEConfig:
    """Every layer routes; `intermediate_size` is the width of an expert."""
    refuse(theirs, shared_intermediate_size=0)
    return MoEConfig(
        n_experts=theirs["num_local_experts"],
        n_active=theirs["num_experts_per_tok"],
        d_expert=theirs["intermediate_size"],
        n_shared=0,
        n_dense_layers=0,
        d_ff=theirs["intermediate_size"],
        bias_speed=0.0,
        **switches,
    )


def moe_keys(cfg: ModelConfig) -> dict[str, Any]:
    moe = cfg.ffn
    assert isinstance(moe, MoEConfig)
    return {
        "num_local_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_active,
        "intermediate_size": moe.d_expert,
    }


def is_plain_moe(cfg: ModelConfig, score: str, biased: bool) -> bool:
    """Every layer routes, with normalised unscaled weights, and nothing is shared or grouped."""
    moe = cfg.ffn
    return (
        isinstance(moe, MoEConfig)
        and (moe.score, moe.biased, moe.norm_weights, moe.route_scale) == (score, biased, True, 1.0)
        and (moe.n_shared, moe.n_groups, cfg.n_moe_layers, cfg.n_mtp) == (0, 1, cfg.n_layers, 0)
    )


def _m2_to_ours(theirs: HFConfig) -> ModelConfig:
    refuse(theirs, scoring_func="sigmoid", use_routing_bias=True, use_qk_norm=True, qk_norm_type="per_layer")
    head_dim = gqa_of(theirs).head_dim
    return ModelConfig(
        **trunk_of(theirs),
        attention=gqa_of(
            theirs, qk_norm=True, norm_all_heads=True, rope_dim=rope_dim_of(theirs, head_dim, default=1.0)
        ),
        ffn=moe_of(theirs),
        rope=rope_of(theirs, theta=5_000_000.0),
    )


def _m2_to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    gqa = cfg.attention
    assert isinstance(gqa, GQAConfig)
    own = {"rotary_dim": gqa.rotary_dim, "use_qk_norm": True, "scoring_func": "sigmoid", "use_routing_bias": True}
    return trunk_keys(cfg) | gqa_keys(cfg) | moe_keys(cfg) | own


def _is_m2(cfg: ModelConfig) -> bool:
    fits = has_gqa(cfg, ffn=MoEConfig, qk_norm=True, norm_all_heads=True, rope_dim=...)
    return fits and is_plain_moe(cfg, "sigmoid", biased=True)


M2 = Family(
    model_type="minimax_m2",
    architecture="MiniMaxM2ForCausalLM",
    accepts=_is_m2,
    to_ours=_m2_to_ours,
    to_theirs=_m2_to_theirs,
    tensors=TRUNK + QKV + HEAD_NORMS + EXPERTS + _BIAS,
)
