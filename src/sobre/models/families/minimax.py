"""MiniMax-M2: grouped-query attention with one norm over all heads, experts without a shared one; and MiniMax-Text-01
and M1: lightning attention with a layer of grouped-query attention now and then, softmax routing.
"""

from typing import Any

from sobre.models.config import GQAConfig, LightningConfig, ModelConfig, MoEConfig, ResidualConfig
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

_EXPERTS = in_layers(
    (
        ("block_sparse_moe.gate.weight", "ffn.router.weight_ED"),
        ("block_sparse_moe.experts.{e}.w1.weight", "ffn.gate_EFD"),
        ("block_sparse_moe.experts.{e}.w3.weight", "ffn.up_EFD"),
        ("block_sparse_moe.experts.{e}.w2.weight", "ffn.down_EDF"),
    )
)
_BIAS = in_layers((("block_sparse_moe.e_score_correction_bias", "ffn.router.bias_E"),))


def _moe_of(theirs: HFConfig, **switches: Any) -> MoEConfig:
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


def _moe_keys(cfg: ModelConfig) -> dict[str, Any]:
    moe = cfg.ffn
    assert isinstance(moe, MoEConfig)
    return {
        "num_local_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_active,
        "intermediate_size": moe.d_expert,
    }


def _is_plain_moe(cfg: ModelConfig, score: str, biased: bool) -> bool:
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
        ffn=_moe_of(theirs),
        rope=rope_of(theirs, theta=5_000_000.0),
    )


def _m2_to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    gqa = cfg.attention
    assert isinstance(gqa, GQAConfig)
    own = {"rotary_dim": gqa.rotary_dim, "use_qk_norm": True, "scoring_func": "sigmoid", "use_routing_bias": True}
    return trunk_keys(cfg) | gqa_keys(cfg) | _moe_keys(cfg) | own


def _is_m2(cfg: ModelConfig) -> bool:
    fits = has_gqa(cfg, ffn=MoEConfig, qk_norm=True, norm_all_heads=True, rope_dim=...)
    return fits and _is_plain_moe(cfg, "sigmoid", biased=True)


_LIGHTNING = in_layers(
    (
        ("self_attn.qkv_proj.weight", "attn.qkv.weight"),
        ("self_attn.output_gate.weight", "attn.gate.weight"),
        ("self_attn.out_proj.weight", "attn.out.weight"),
        ("self_attn.norm.weight", "attn.norm.weight"),
    )
)
_RESIDUAL = {
    "attn_alpha": "full_attn_alpha_factor",
    "attn_beta": "full_attn_beta_factor",
    "linear_alpha": "linear_attn_alpha_factor",
    "linear_beta": "linear_attn_beta_factor",
    "ffn_alpha": "mlp_alpha_factor",
    "ffn_beta": "mlp_beta_factor",
}


def _text_01_to_ours(theirs: HFConfig) -> ModelConfig:
    refuse(theirs, sliding_window=None)
    gqa = gqa_of(theirs)
    kinds = theirs.get("layer_types") or ["full_attention", "linear_attention"] * theirs["num_hidden_layers"]
    full = [layer for layer in range(theirs["num_hidden_layers"]) if kinds[layer] == "full_attention"]
    lightning = LightningConfig(
        n_heads=gqa.n_heads,
        n_kv_heads=gqa.n_kv_heads,
        head_dim=gqa.head_dim,
        full_layers=tuple(full),
        block=theirs.get("block_size", 256),
    )
    return ModelConfig(
        **trunk_of(theirs),
        attention=lightning,
        ffn=_moe_of(theirs, score="softmax", biased=False),
        rope=rope_of(theirs, theta=1_000_000.0),
        residual=ResidualConfig(**{ours: float(theirs.get(key, 1)) for ours, key in _RESIDUAL.items()}),
    )


def _text_01_to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    attn = cfg.attention
    assert isinstance(attn, LightningConfig)
    assert cfg.residual is not None
    full = ["full_attention" if layer in attn.full_layers else "linear_attention" for layer in range(cfg.n_layers)]
    return {
        **trunk_keys(cfg),
        **_moe_keys(cfg),
        "num_key_value_heads": attn.n_kv_heads,
        "head_dim": attn.head_dim,
        "layer_types": full,
        "block_size": attn.block,
        **{key: getattr(cfg.residual, ours) for ours, key in _RESIDUAL.items()},
    }


def _is_text_01(cfg: ModelConfig) -> bool:
    fits = isinstance(cfg.attention, LightningConfig) and cfg.residual is not None and not cfg.rope.interleaved
    return fits and _is_plain_moe(cfg, "softmax", biased=False)


TEXT_01 = Family(
    model_type="minimax",
    architecture="MiniMaxForCausalLM",
    accepts=_is_text_01,
    to_ours=_text_01_to_ours,
    to_theirs=_text_01_to_theirs,
    tensors=TRUNK + QKV + _LIGHTNING + _EXPERTS,
    derived=("rotary_emb.inv_freq", "slope_rate", "query_decay", "key_decay", "diagonal_decay"),
)
M2 = Family(
    model_type="minimax_m2",
    architecture="MiniMaxM2ForCausalLM",
    accepts=_is_m2,
    to_ours=_m2_to_ours,
    to_theirs=_m2_to_theirs,
    tensors=TRUNK + QKV + HEAD_NORMS + _EXPERTS + _BIAS,
)
FAMILIES = (M2, TEXT_01)
