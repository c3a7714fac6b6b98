"""Fixtures that any test may ask for. Tests compute in one thread: at their sizes a second one only waits."""

import os
from collections.abc import Callable

import pytest

from sobre.models.config import MLAConfig, ModelConfig, MoEConfig

os.environ["XDG_CONFIG_HOME"] = "/nonexistent"  # a plan of the tests knows no chip of whoever runs them
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, here and in the processes that tests start

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported, by whichever test that is


@pytest.fixture
def seeded_randn() -> Callable[..., torch.Tensor]:
    """`seeded_randn(2, 3)`: normal numbers, the same in every run; `seed=` for others."""

    def randn(*shape: int, seed: int = 0) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    return randn


@pytest.fixture
def nano_config() -> ModelConfig:
    """The smallest model that has every part: latent attention, a dense layer, a routing layer with a shared expert."""
    return ModelConfig(
        vocab_size=64,
        d_model=32,
        n_layers=2,
        attention=MLAConfig(n_heads=2, q_rank=16, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=8),
        ffn=MoEConfig(n_experts=4, n_active=2, d_expert=16, d_ff=48),
        max_len=64,
    )
