"""A model without weights whose logits depend on every token of the context, read back from the cache.

A misplaced, stale or missing cache entry changes all that follows, so equal tokens prove that the cache was right.
"""

import numpy as np
import pytest
import torch

from sobre.engine.sampling import mix64
from sobre.models.config import GQAConfig, ModelConfig, MoEConfig
from sobre.models.step import StepInput, StepOutput

VOCAB, MAX_LEN = 50, 48
CONFIG = ModelConfig(
    vocab_size=VOCAB,
    d_model=1,
    n_layers=1,
    max_len=MAX_LEN,
    attention=GQAConfig(n_heads=1, n_kv_heads=1, head_dim=2),
    ffn=MoEConfig(n_experts=8, n_active=2, n_dense_layers=0),
)


class FakeModel:
    def __init__(self) -> None:
        self.cfg, self.dtype = CONFIG, torch.float32
        self.steps: list[StepInput] = []
        self.salt = 0

    def __call__(self, step: StepInput, cache=None) -> StepOutput:
        self.steps.append(step)
        tokens_N1 = step.tokens_N.unsqueeze(1)
        cache.write(0, tokens_N1.expand(-1, CONFIG.attention.cache_dim), step)
        entries_RSC = cache.read(0, step)
        hidden = []
        for row, (start, length) in enumerate(zip(step.starts, step.lengths, strict=True)):
            hidden += [self.digest(entries_RSC[row, : start + t + 1, 0].tolist()) for t in range(length)]
        routes_1NA = torch.stack([tokens_N1 % 8, (tokens_N1 + 1) % 8], -1).transpose(0, 1)
        return StepOutput(torch.tensor(hidden).unsqueeze(1), tuple(routes_1NA), 8, torch.zeros(()))

    def digest(self, context: list[float]) -> int:
        return hash((self.salt, *map(int, context)))

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        base_N1 = hidden_ND.numpy().astype(np.uint64)
        bits_NV = mix64(base_N1 + np.arange(VOCAB, dtype=np.uint64))
        return torch.from_numpy((bits_NV >> np.uint64(40)).astype(np.float32) * 2.0**-24 * 6)

    def next_logits(self, context: list[int]) -> torch.Tensor:
        return self.logits(torch.tensor([[self.digest(context)]]))


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()
