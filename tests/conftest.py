"""Fixtures that any test may ask for. Tests compute in one thread: at their sizes a second one only waits."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from sobre.models.config import MLAConfig, ModelConfig, MoEConfig

os.environ["XDG_CONFIG_HOME"] = "/nonexistent"  # a plan of the tests knows no chip of whoever runs them
os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, here and in the processes that tests start

if TYPE_CHECKING:
    from torch import Tensor


@pytest.fixture
def seeded_randn() -> "Callable[..., Tensor]":
    """`seeded_randn(2, 3)`: normal numbers, the same in every run; `seed=` for others."""
    import torch

    def randn(*shape: int, seed: int = 0) -> "Tensor":
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
