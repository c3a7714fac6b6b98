"""N-gram memory: look-up instead of arithmetic (DeepSeek's Engram, arXiv 2601.07372, 2).

The last tokens, as classes that spelling does not divide (tokenizer/classes.py), name rows of large tables. What stands
there is gated by how well it fits the hidden state, smoothed by a short causal convolution, and added to the residual
stream before the attention of a few early layers. A token reads n_heads rows for each order, and a step touches the
gradient of no others (optim/rows.py), however many there are.

    e = rows of all orders and heads, side by side
    y = sigmoid(norm(x) . norm(K e) / sqrt(D)) * V e
    x + y + silu(conv(norm(y)))                          conv: `kernel` taps, max(orders) tokens apart, zero at first

One deviation: a row is found by (sum of a_j c_j mod 2^31 - 1) mod n_rows, which is universal hashing (Carter and Wegman
1979), where the paper multiplies and xors. With a cache, classes and norm(y) of earlier tokens are kept beside the keys
and values, so that shared prefixes, chunks and rejected guesses work as for attention.

Shapes: N tokens, D width, V vocabulary, O classes of a token and of those before it, I tables of a layer, M rows of all
tables together, W width of a row, K taps.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sobre.models.cache import KVCache
from sobre.models.config import ModelConfig
from sobre.models.layers import Linear, RMSNorm
from sobre.models.step import StepInput
from sobre.runtime.device import carried
from sobre.runtime.seed import key_u64

PRIME = 2**31 - 1
NOTHING = 0
"""The class of what stands before the beginning."""


class Memory(nn.Module):
    """All of a model's memory: the classes of its tokens, and tables at some layers."""

    classes_V: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.longest = max(cfg.memory.orders)
        # numpy's: torch's own arange on the meta device imports torch's compiler, which takes seconds
        self.register_buffer("classes_V", torch.from_numpy(np.arange(1, cfg.vocab_size + 1, dtype=np.int32)))
        self.at = nn.ModuleDict(
            {str(layer): LayerMemory(cfg, trail) for trail, layer in enumerate(cfg.memory.layers, 1)}
        )

    def grams(self, step: StepInput, cache: KVCache | None) -> Tensor:
        """grams_NO: the class of every token, of the one before it, and so on."""
        classes_N = self.classes_V[step.tokens_N].long()
        return torch.stack(earlier(classes_N, range(self.longest), step, cache, trail=0), -1)


class LayerMemory(nn.Module):
    """What one layer remembers."""

    def __init__(self, cfg: ModelConfig, trail: int) -> None:
        super().__init__()
        memory = cfg.memory
        self.n_rows, self.trail = memory.n_rows, trail
        self.ages = [tap * max(memory.orders) for tap in range(memory.kernel)]
        layer, longest = memory.layers[trail - 1], max(memory.orders)
        self.factors_IO = [
            [_factor(layer, order, head, age) if age < order else 0 for age in range(longest)]
            for order in memory.orders
            for head in range(memory.n_heads)
        ]
        self.table_MW = nn.Parameter(torch.empty(memory.n_tables * memory.n_rows, memory.dim))
        self.key = Linear(memory.read_dim, cfg.d_model)
        self.value = Linear(memory.read_dim, cfg.d_model)
        self.query_norm, self.key_norm, self.value_norm = (RMSNorm(cfg.d_model, cfg.norm_eps) for _ in range(3))
        self.conv_KD = nn.Parameter(torch.empty(memory.kernel, cfg.d_model))

    def rows(self, grams_NO: Tensor) -> Tensor:
        """rows_NI: which row of the table each order and head reads."""
        factors_IO = carried(torch.tensor(self.factors_IO), grams_NO.device)
        first_I = torch.arange(len(factors_IO), device=grams_NO.device) * self.n_rows
        return (grams_NO[:, None] * factors_IO).sum(-1) % PRIME % self.n_rows + first_I

    def forward(self, x_ND: Tensor, grams_NO: Tensor, step: StepInput, cache: KVCache | None) -> Tensor:
        found = F.embedding(self.rows(grams_NO), self.table_MW, sparse=True).flatten(1).to(x_ND.dtype)
        fit_ND = self.query_norm(x_ND) * self.key_norm(self.key(found))
        gate_N1 = torch.sigmoid(fit_ND.sum(-1, keepdim=True) * x_ND.shape[-1] ** -0.5)
        y_ND = gate_N1 * self.value(found)
        seen = earlier(self.value_norm(y_ND), self.ages, step, cache, self.trail)
        smooth_ND = torch.zeros_like(y_ND)
        for tap_D, past_ND in zip(self.conv_KD.to(x_ND.dtype), seen, strict=True):
            smooth_ND = torch.addcmul(smooth_ND, tap_D, past_ND)
        return x_ND + y_ND + F.silu(smooth_ND)


def _factor(layer: int, order: int, head: int, age: int) -> int:
    """The multiplier of the class `age` tokens back, in 1..PRIME - 1; every layer, order and head has its own."""
    return key_u64("memory", layer, order, head, age) % (PRIME - 1) + 1


def earlier(x_N: Tensor, ages: "list[int] | range", step: StepInput, cache: KVCache | None, trail: int) -> list[Tensor]:
    """What x was at the token so many places before each; zero before the beginning of its sequence."""
    if cache is not None:
        cache.leave(trail, x_N, step)
    found = []
    for age in ages:
        if age == 0:
            found.append(x_N)
            continue
        past_N = x_N.roll(age, 0) if cache is None or step.is_fresh else cache.recall(trail, step, age).to(x_N.dtype)
        is_before_N = step.positions_N < age
        found.append(past_N.masked_fill(is_before_N.view(-1, *[1] * (x_N.ndim - 1)), NOTHING))
    return found
