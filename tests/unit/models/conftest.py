"""Small models of every kind, filled with seeded weights, and ragged steps to feed them."""

from collections.abc import Callable

import pytest
import torch

from sobre.models.config import (
    DenseConfig,
    GQAConfig,
    IndexerConfig,
    LightningConfig,
    MemoryConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
    ResidualConfig,
    RopeConfig,
)
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput

KINDS = {
    "mla+moe": ModelConfig(
        vocab_size=61,
        max_len=64,
        d_model=32,
        n_layers=3,
        attention=MLAConfig(n_heads=4, q_rank=24, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=12),
        ffn=MoEConfig(n_experts=8, n_active=3, d_expert=16, n_groups=4, n_active_groups=2, d_ff=40, route_scale=2.5),
        n_mtp=1,
    ),
    "mla+dense": ModelConfig(
        vocab_size=61,
        max_len=64,
        d_model=32,
        n_layers=2,
        attention=MLAConfig(n_heads=2, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=8),
        ffn=DenseConfig(d_ff=40),
    ),
    "sparse mla": ModelConfig(
        vocab_size=61,
        max_len=64,
        d_model=32,
        n_layers=2,
        attention=MLAConfig(
            n_heads=2,
            q_rank=16,
            kv_rank=16,
            nope_dim=8,
            rope_dim=4,
            v_dim=8,
            indexer=IndexerConfig(n_heads=16, dim=8, n_keys=6),
        ),
        ffn=DenseConfig(d_ff=40),
    ),
    "lightning+moe": ModelConfig(
        vocab_size=61,
        max_len=64,
        d_model=32,
        n_layers=3,
        attention=LightningConfig(n_heads=4, n_kv_heads=2, head_dim=8, full_layers=(1,)),
        ffn=MoEConfig(
            n_experts=4,
            n_active=2,
            d_expert=16,
            n_shared=0,
            n_dense_layers=0,
            d_ff=16,
            score="softmax",
            biased=False,
            bias_speed=0.0,
        ),
        rope=RopeConfig(interleaved=False),
        residual=ResidualConfig(linear_alpha=1.2, ffn_beta=0.8),
    ),
    "gqa+dense": ModelConfig(
        vocab_size=61,
        max_len=64,
        d_model=32,
        n_layers=2,
        attention=GQAConfig(n_heads=4, n_kv_heads=2, head_dim=12, qk_norm=True),
        ffn=DenseConfig(d_ff=40),
        rope=RopeConfig(interleaved=False),
        tied=True,
    ),
    "mla+moe+memory": ModelConfig(
        vocab_size=61,
        max_len=64,
        d_model=32,
        n_layers=2,
        attention=MLAConfig(n_heads=2, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=8),
        ffn=MoEConfig(n_experts=4, n_active=2, d_expert=16, d_ff=40),
        n_mtp=1,
        memory=MemoryConfig(layers=(0, 1), orders=(2, 3), n_heads=2, n_rows=97, dim=8, kernel=3),
    ),
}


def build(cfg: ModelConfig, seed: int = 0) -> Decoder:
    """A model in float32 with large seeded weights and uneven router biases, in eval mode."""
    model = Decoder(cfg)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
        for router in model.routers():
            router.bias_E.normal_(0, 0.1 if router.cfg.biased else 0.0, generator=generator)
        if model.memory is not None:  # as after training: what is read matters
            model.memory.classes_V.copy_(torch.randint(1, 30, (cfg.vocab_size,), generator=generator))
            for name, parameter in model.memory.named_parameters():
                if name.endswith(("_MW", "_KD")):
                    parameter.normal_(0, 1.0, generator=generator)
    return model.eval()


def ragged(lengths: tuple[int, ...], vocab_size: int = 61, seed: int = 0) -> StepInput:
    generator = torch.Generator().manual_seed(seed)
    return StepInput(torch.randint(0, vocab_size, (sum(lengths),), generator=generator), lengths=lengths)


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> ModelConfig:
    return KINDS[request.param]


@pytest.fixture
def make() -> Callable[..., Decoder]:
    return build
