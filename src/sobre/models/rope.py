"""Rotary position embedding: the table of cosines and sines, with YaRN (arXiv 2309.00071) as DeepSeek-V3 uses it, and
with Llama 3.1's scaling.

The rotation itself is an op (`kernels`); this page only fills the table. YaRN keeps the fast frequencies, divides the
slow ones by `factor` and blends between two dimensions given by beta_fast and beta_slow. It is applied to every
position, as in DeepSeek's inference code, and its temperature enters the softmax scale (`softmax_factor`), not the
table: the table's own factor, mscale / mscale_all_dim, is 1 for V3. Others (Qwen) leave the softmax scale alone and
multiply the table, which is mscale_all_dim = 0.

The table is made on the CPU even where a model is laid out on the meta device: `arange` there imports torch's compiler,
which took longer than reading a gigabyte of weights.

Llama 3.1 (released code, `apply_scaling`) keeps short wavelengths, divides long ones, and blends by the number of
wavelengths that fit the original context.
"""

import math

import torch
from torch import Tensor, nn

from sobre.models.config import Llama3RopeConfig, RopeConfig, YarnConfig


class Rope(nn.Module):
    """Cosines and sines of every position, for `dim` rotary numbers (dim / 2 pairs)."""

    cos_T2: Tensor
    sin_T2: Tensor

    def __init__(self, cfg: RopeConfig, dim: int, max_len: int) -> None:
        super().__init__()
        self.interleaved = cfg.interleaved
        self.dim = dim
        angles_T2 = torch.outer(torch.arange(max_len, dtype=torch.float32, device="cpu"), frequencies(cfg, dim))
        factor = 1.0 if cfg.yarn is None else table_factor(cfg.yarn)
        self.register_buffer("cos_T2", angles_T2.cos() * factor, persistent=False)
        self.register_buffer("sin_T2", angles_T2.sin() * factor, persistent=False)

    def forward(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos_N2 and sin_N2 (float32) of the given positions."""
        return self.cos_T2[positions_N], self.sin_T2[positions_N]


def frequencies(cfg: RopeConfig, dim: int) -> Tensor:
    """Angle per position of each of the dim / 2 pairs, float32."""
    exponents_2 = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    plain_2 = 1.0 / cfg.theta**exponents_2
    if cfg.llama3 is not None:
        return _llama3(plain_2, cfg.llama3)
    if cfg.yarn is None:
        return plain_2
    low, high = _blend_range(cfg.yarn, cfg.theta, dim)
    ramp_2 = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain_2 * (1 - ramp_2) + plain_2 / cfg.yarn.factor * ramp_2


def softmax_factor(cfg: RopeConfig) -> float:
    """What YaRN multiplies the softmax scale with: (0.1 * mscale_all_dim * ln(factor) + 1) squared."""
    return 1.0 if cfg.yarn is None else _mscale(cfg.yarn.factor, cfg.yarn.mscale_all_dim) ** 2


def _blend_range(yarn: YarnConfig, theta: float, dim: int) -> tuple[float, float]:
    """The pair indices between which a frequency goes from kept to divided."""

    def pair_of(rotations: float) -> float:
        return dim * math.log(yarn.original_len / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    return max(math.floor(pair_of(yarn.beta_fast)), 0), min(math.ceil(pair_of(yarn.beta_slow)), dim - 1)


def _llama3(plain_2: Tensor, cfg: Llama3RopeConfig) -> Tensor:
    turns_2 = cfg.original_len * plain_2 / (2 * math.pi)  # full turns within the original context
    kept_2 = ((turns_2 - cfg.low_factor) / (cfg.high_factor - cfg.low_factor)).clamp(0, 1)
    return plain_2 / cfg.factor * (1 - kept_2) + plain_2 * kept_2


def table_factor(yarn: YarnConfig) -> float:
    if yarn.table_factor is not None:
        return yarn.table_factor
    return _mscale(yarn.factor, yarn.mscale) / _mscale(yarn.factor, yarn.mscale_all_dim)


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
