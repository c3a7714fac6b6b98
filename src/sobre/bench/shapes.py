"""The models that the benchmarks measure: the DeepSeek-V3 shape at 20M, and dense twins of equal active parameters.

No torch. Active parameters are those of the matrices that one token is multiplied by, output head included.
"""

from dataclasses import replace

from sobre.models.config import DenseConfig, GQAConfig, MLAConfig, ModelConfig, MoEConfig
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
