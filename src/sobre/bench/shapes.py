"""The models that the benchmarks measure: the DeepSeek-V3 shape at 20M, and dense twins of equal active parameters.

No torch. Active parameters are those of the matrices that one token is multiplied by, output head included.
"""

from dataclasses import replace
from typing import Any

from sobre.models.config import (
    DenseConfig,
    GQAConfig,
    IndexerConfig,
    LightningConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
    ResidualConfig,
    RopeConfig,
)
from sobre.plan.count import params

SMALL = ModelConfig(
    vocab_size=4096,
    max_len=512,
    d_model=256,
    n_layers=6,
    attention=MLAConfig(n_heads=8, q_rank=96, kv_rank=64, nope_dim=32, rope_dim=16, v_dim=32),
    ffn=MoEConfig(n_experts=32, n_active=4, d_expert=128, n_shared=1, n_dense_layers=1, d_ff=640),
)
"""19.9M parameters, 5.12M active: one dense layer, then five of 32 experts, 4 active and one shared."""

LARGE = ModelConfig(
    vocab_size=32_768,
    max_len=4096,
    d_model=1024,
    n_layers=12,
    attention=MLAConfig(n_heads=16, q_rank=384, kv_rank=256, nope_dim=64, rope_dim=64, v_dim=64),
    ffn=MoEConfig(n_experts=52, n_active=4, d_expert=512, n_shared=1, n_dense_layers=1, d_ff=4096),
)
"""1.03 billion parameters, 2 GB in bfloat16: 572 experts of 3 MB each, the rest of the V3 shape around them."""

MIXTURE = ModelConfig(
    vocab_size=16_384,
    max_len=4096,
    d_model=512,
    n_layers=12,
    attention=MLAConfig(n_heads=12, q_rank=256, kv_rank=256, nope_dim=64, rope_dim=64, v_dim=64),
    ffn=MoEConfig(n_experts=36, n_active=4, d_expert=352, n_shared=1, n_dense_layers=1, d_ff=2048),
)
"""257.9M parameters, 59.2M active: latent attention and experts, the latent as wide as vLLM and SGLang take it."""

QWEN3 = ModelConfig(
    vocab_size=151_936,
    max_len=4096,
    d_model=1024,
    n_layers=28,
    attention=GQAConfig(n_heads=16, n_kv_heads=8, head_dim=128, qk_norm=True),
    ffn=DenseConfig(d_ff=3072),
    rope=RopeConfig(theta=1e6, interleaved=False),
    tied=True,
)
"""The shape of Qwen3-0.6B: 596M parameters, dense, embedding and head tied."""

DECODED = {"mixture-257m": MIXTURE, "qwen3-0.6b": QWEN3}
"""What `bench decode --preset` takes."""

_LATENT = MLAConfig(n_heads=8, q_rank=96, kv_rank=64, nope_dim=32, rope_dim=16, v_dim=32)
_ROUTED = MoEConfig(n_experts=16, n_active=4, d_expert=128, n_dense_layers=0, d_ff=128, bias_speed=0.0)
_SOFTMAX = replace(_ROUTED, n_shared=0, score="softmax", biased=False)
_V3 = ModelConfig(vocab_size=2048, max_len=1024, d_model=256, n_layers=4, attention=_LATENT, ffn=_ROUTED)
_GROUPED = GQAConfig(n_heads=8, n_kv_heads=2, head_dim=32)
_LLAMA = replace(_V3, attention=_GROUPED, ffn=DenseConfig(d_ff=768), rope=RopeConfig(interleaved=False))


def _mixture(ffn: MoEConfig, **switches: Any) -> ModelConfig:
    return replace(_LLAMA, attention=replace(_GROUPED, **switches), ffn=ffn)


FAMILY_SHAPES = {
    "deepseek_v3": _V3,
    "deepseek_v2": replace(_V3, ffn=replace(_SOFTMAX, n_shared=2, norm_weights=False)),
    "deepseek_v32": replace(_V3, attention=replace(_LATENT, indexer=IndexerConfig(n_heads=16, dim=32, n_keys=128))),
    "llama": _LLAMA,
    "qwen2": replace(_LLAMA, attention=replace(_GROUPED, qkv_bias=True)),
    "qwen3": replace(_LLAMA, attention=replace(_GROUPED, qk_norm=True)),
    "qwen3_moe": _mixture(_SOFTMAX, qk_norm=True),
    "glm4_moe": _mixture(_ROUTED, qk_norm=True, qkv_bias=True, rope_dim=16),
    "minimax_m2": _mixture(replace(_ROUTED, n_shared=0), qk_norm=True, norm_all_heads=True, rope_dim=16),
    "minimax": replace(
        _mixture(_SOFTMAX),
        attention=LightningConfig(n_heads=8, n_kv_heads=2, head_dim=32, full_layers=(3,)),
        residual=ResidualConfig(),
    ),
    "ernie4_5": replace(_LLAMA, rope=RopeConfig()),
    "ernie4_5_moe": replace(_mixture(replace(_SOFTMAX, biased=True, n_shared=2)), rope=RopeConfig()),
    "seed_oss": replace(_LLAMA, attention=replace(_GROUPED, qkv_bias=True)),
}
"""A small model of every family, in its own parts."""

D_FF_UNIT = 8
"""Inner widths of twins are multiples of this."""


def dense_twin(cfg: ModelConfig) -> ModelConfig:
    """A dense model with grouped-query attention: width, depth, vocabulary and active parameters of `cfg`."""
    n_heads = cfg.attention.n_heads
    attention = GQAConfig(n_heads=n_heads, n_kv_heads=max(1, n_heads // 4), head_dim=cfg.d_model // n_heads)
    rope = replace(cfg.rope, interleaved=False)

    def twin(d_ff: int) -> ModelConfig:
        return replace(cfg, attention=attention, ffn=DenseConfig(d_ff=d_ff), rope=rope, n_mtp=0)

    slim = params(twin(0)).active
    per_unit = params(twin(1)).active - slim
    d_ff = (params(cfg).active - slim) / per_unit
    return twin(max(1, round(d_ff / D_FF_UNIT)) * D_FF_UNIT)
