"""Llama, Qwen2 and Qwen3, dense: grouped-query attention, halves rotated; Qwen2 adds biases, Qwen3 head norms."""

from typing import Any

from sobre.errors import CheckpointError
from sobre.models.config import DenseConfig, GQAConfig, ModelConfig, RopeConfig
from sobre.models.families.base import (
    QKV,
    TRUNK,
    Family,
    HFConfig,
    plain_rope,
    refuse_rope_scaling,
    rope_theta,
    trunk_keys,
)

_BIASES = tuple((theirs.replace("weight", "bias"), ours.replace("weight", "bias")) for theirs, ours in QKV)
_HEAD_NORMS = (
    ("model.layers.{i}.self_attn.q_norm.weight", "layers.{i}.attn.q_norm.weight"),
    ("model.layers.{i}.self_attn.k_norm.weight", "layers.{i}.attn.k_norm.weight"),
)


def _is_dense_gqa(cfg: ModelConfig, *, qk_norm: bool, qkv_bias: bool) -> bool:
    gqa = cfg.attention
    plain = isinstance(cfg.ffn, DenseConfig) and not cfg.rope.interleaved and not cfg.n_mtp and cfg.rope.yarn is None
    return plain and isinstance(gqa, GQAConfig) and (gqa.qk_norm, gqa.qkv_bias) == (qk_norm, qkv_bias)


def _to_ours(theirs: HFConfig, *, qk_norm: bool, qkv_bias: bool) -> ModelConfig:
    refuse_rope_scaling(theirs, theirs["model_type"])
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if theirs.get(key):
            raise CheckpointError(f"{theirs['model_type']} with {key}=true is not supported")
    n_heads = theirs["num_attention_heads"]
    return ModelConfig(
        vocab_size=theirs["vocab_size"],
        d_model=theirs["hidden_size"],
        n_layers=theirs["num_hidden_layers"],
        attention=GQAConfig(
            n_heads=n_heads,
            n_kv_heads=theirs.get("num_key_value_heads") or n_heads,
            head_dim=theirs.get("head_dim") or theirs["hidden_size"] // n_heads,
            qk_norm=qk_norm,
            qkv_bias=qkv_bias,
        ),
        ffn=DenseConfig(d_ff=theirs["intermediate_size"]),
        rope=RopeConfig(theta=rope_theta(theirs), interleaved=False),
        max_len=theirs["max_position_embeddings"],
        norm_eps=theirs["rms_norm_eps"],
        tied=theirs.get("tie_word_embeddings", False),
        init_std=theirs.get("initializer_range", 0.02),
    )


def _to_theirs(cfg: ModelConfig) -> dict[str, Any]:
    assert isinstance(cfg.attention, GQAConfig)
    assert isinstance(cfg.ffn, DenseConfig)
    return trunk_keys(cfg) | {
        "num_key_value_heads": cfg.attention.n_kv_heads,
        "head_dim": cfg.attention.head_dim,
        "intermediate_size": cfg.ffn.d_ff,
        "attention_bias": False,
        **plain_rope(cfg.rope.theta),
    }


def _family(model_type: str, architecture: str, *, qk_norm: bool, qkv_bias: bool) -> Family:
    return Family(
        model_type=model_type,
        architecture=architecture,
        accepts=lambda cfg: _is_dense_gqa(cfg, qk_norm=qk_norm, qkv_bias=qkv_bias),
        to_ours=lambda theirs: _to_ours(theirs, qk_norm=qk_norm, qkv_bias=qkv_bias),
        to_theirs=_to_theirs,
        tensors=TRUNK + QKV + (_HEAD_NORMS if qk_norm else ()) + (_BIASES if qkv_bias else ()),
    )


LLAMA = _family("llama", "LlamaForCausalLM", qk_norm=False, qkv_bias=False)
QWEN2 = _family("qwen2", "Qwen2ForCausalLM", qk_norm=False, qkv_bias=True)
QWEN3 = _family("qwen3", "Qwen3ForCausalLM", qk_norm=True, qkv_bias=False)
