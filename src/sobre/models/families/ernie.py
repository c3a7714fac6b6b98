"""ERNIE 4.5 (Baidu, technical report 2025), dense and MoE: rotary pairs interleaved, a softmax router with a bias.

The MoE releases carry a multi-token prediction module of another form than DeepSeek's; we load without it and say so.
"""

from typing import Any

from sobre.models.config import DenseConfig, GQAConfig, ModelConfig, MoEConfig
from sobre.models.families.base import (
    EXPERTS,
    FFN,
    FFN_BIASES,
    O_BIAS,
    QKV,
    QKV_BIASES,
    SHARED,
    TRUNK,
    Family,
    HFConfig,
    gqa_keys,
    gqa_of,
    has_gqa,
    in_layers,
    refuse,
    rope_of,
    trunk_keys,
    trunk_of,
)

_ATTENTION = QKV + QKV_BIASES + O_BIAS
_BIAS = in_layers((("mlp.moe_statics.e_score_correction_bias", "ffn.router.bias_E[None]"),))


def _common(theirs: HFConfig) -> dict[str, Any]:
    bias = theirs.get("use_bias", False)
    return {
        **trunk_of(theirs, tied=True),
        "attention": gqa_of(theirs, qkv_bias=bias, o_bias=bias),
        "ffn_bias": bias,
        "rope": rope_of(theirs, interleaved=True, theta=500_000.0),
    }


def _dense_to_ours(theirs: HFConfig) -> ModelConfig:
    return ModelConfig(**_common(theirs), ffn=DenseConfig(d_ff=theirs["intermediate_size"]))


def _moe_to_ours(theirs: HFConfig) -> ModelConfig:
    refuse(theirs, use_bias=False)  # there it means a bias on the output head, too
    n_layers, every = theirs["num_hidden_layers"], theirs.get("moe_layer_interval", 1)
    first, last = theirs.get("moe_layer_start_index", 1), theirs.get("moe_layer_end_index", -1)
    last = n_layers - 1 if last == -1 else last
    dense = [layer for layer in range(n_layers) if (layer + 1) % every or not first <= layer <= last]
    n_first = next((layer for layer in range(n_layers) if layer not in dense), n_layers)
    moe = MoEConfig(
        n_experts=theirs["moe_num_experts"],
        n_active=theirs["moe_k"],
        d_expert=theirs["moe_intermediate_size"],
        n_shared=theirs.get("moe_num_shared_experts") or 0,
        score="softmax",
        n_dense_layers=n_first,
        dense_layers=tuple(layer for layer in dense if layer > n_first),
        d_ff=theirs["intermediate_size"],
        bias_speed=0.0,
    )
    return ModelConfig(**_common(theirs), ffn=moe)


def _dense_to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    return {**trunk_keys(cfg), **gqa_keys(cfg), "intermediate_size": cfg.ffn.d_ff, "use_bias": cfg.ffn_bias}


def _moe_to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    moe = cfg.ffn
    assert isinstance(moe, MoEConfig)
    first, last, every = _routing_layers(cfg)
    return _dense_to_theirs(cfg) | {
        "moe_num_experts": moe.n_experts,
        "moe_k": moe.n_active,
        "moe_intermediate_size": moe.d_expert,
        "moe_num_shared_experts": moe.n_shared,
        "moe_layer_start_index": first,
        "moe_layer_end_index": last,
        "moe_layer_interval": every,
    }


def _routing_layers(cfg: ModelConfig) -> tuple[int, int, int]:
    """First and last routing layer, and the step between two, which may be irregular (see `_is_moe`).

    Where none routes, the first lies beyond the last layer.
    """
    layers = [layer for layer in range(cfg.n_layers) if cfg.is_moe_layer(layer)]
    if not layers:
        return cfg.n_layers, cfg.n_layers - 1, 1
    return layers[0], layers[-1], layers[1] - layers[0] if len(layers) > 1 else 1


def _has_attention(cfg: ModelConfig, ffn: type) -> bool:
    gqa = cfg.attention
    biases = isinstance(gqa, GQAConfig) and {gqa.qkv_bias, gqa.o_bias} == {cfg.ffn_bias}
    return biases and not cfg.n_mtp and has_gqa(cfg, interleaved=True, ffn=ffn, qkv_bias=..., o_bias=...)


def _is_moe(cfg: ModelConfig) -> bool:
    moe = cfg.ffn
    if not isinstance(moe, MoEConfig) or not _has_attention(cfg, MoEConfig) or cfg.ffn_bias:
        return False
    first, last, every = _routing_layers(cfg)
    regular = all(
        cfg.is_moe_layer(layer) == ((layer + 1) % every == 0 and first <= layer <= last)
        for layer in range(cfg.n_layers)
    )
    return regular and (moe.score, moe.biased, moe.norm_weights, moe.n_groups, moe.route_scale) == (
        "softmax",
        True,
        True,
        1,
        1.0,
    )


ERNIE = Family(
    model_type="ernie4_5",
    architecture="Ernie4_5ForCausalLM",
    accepts=lambda cfg: _has_attention(cfg, DenseConfig),
    to_ours=_dense_to_ours,
    to_theirs=_dense_to_theirs,
    tensors=TRUNK + _ATTENTION + FFN + FFN_BIASES,
)
ERNIE_MOE = Family(
    model_type="ernie4_5_moe",
    architecture="Ernie4_5_MoeForCausalLM",
    accepts=_is_moe,
    to_ours=_moe_to_ours,
    to_theirs=_moe_to_theirs,
    tensors=TRUNK + _ATTENTION + FFN + FFN_BIASES + EXPERTS + _BIAS + SHARED,
    without=("model.mtp",),
)
FAMILIES = (ERNIE, ERNIE_MOE)
