"""FP8 numbers as DeepSeek-V3 trains with them (arXiv 2412.19437, 3.3): E4M3, a scale for each tile, sums in float32.

Activations and gradients have one scale for each 1 x 128 tile along the contraction, weights one for each 128 x 128
block: a tile is divided by its largest magnitude over 448 (the largest E4M3), computed from the tile itself. The
product multiplies 128 of the contraction at a time and adds each part, times its two scales, to a float32 sum: where
the tensor cores of Hopper add with some 14 bits, this is the promotion of 3.3.2. Scales may be rounded up to powers of
two (V3.1): then quantising again along the other axis is exact, but for what falls out of E4M3's range.

This page is the specification and runs anywhere. Numbers at the edge:
- zero stays zero, and a tile of zeros has the smallest scale; the released inference code takes magnitudes below 1e-4
  for 1e-4, which would erase gradients of a loss that is a mean, so here the floor is float32's smallest normal number;
- below it, and below a tile's own 2**-9 after scaling (E4M3 has denormals), values round to zero;
- an infinity or a NaN makes its whole tile NaN, so that the step which made it is refused and not repaired.

Shapes: I rows of the left and O rows of the right operand, K the contraction, both as (rows, K); Q tiles of K;
E experts, M rows sorted by expert. Inside `quantise`: J rows of tiles, U rows of one, T its 128 numbers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 128
LARGEST = 448.0
"""Of E4M3 in the variant without infinities."""
SMALLEST_SCALE = 2.0**-126
FORMAT = torch.float8_e4m3fn


class Quantised(NamedTuple):
    """A matrix in E4M3; `values * scales` is what it stands for."""

    values_IK: Tensor
    scales: Tensor
    """Float32: (I, Q) for tiles of one row, (ceil(I / 128), Q) for blocks."""
    rows: int
    """Rows that share a scale: 1 or 128."""

    @property
    def scales_IQ(self) -> Tensor:
        """One scale for each row and tile."""
        n_rows = self.values_IK.shape[0]
        return self.scales if self.rows == 1 else self.scales.repeat_interleave(TILE, 0)[:n_rows]

    def dequantised(self) -> Tensor:
        """The numbers it stands for, in float32."""
        n_inner = self.values_IK.shape[1]
        return self.values_IK.float() * self.scales_IQ.repeat_interleave(TILE, 1)[:, :n_inner]

    def transposed(self) -> "Quantised":
        """The same numbers as (K, I); blocks alone are square, tiles must be quantised again."""
        assert self.rows == TILE, "a 1 x 128 tile along K is no tile along I"
        return Quantised(self.values_IK.t(), self.scales.t(), TILE)


def quantise(x_IK: Tensor, rows: int, power_of_two: bool = False) -> Quantised:
    """Round to E4M3 with a scale for each `rows` x 128 tile; the last tiles may be smaller."""
    n_rows, n_inner = x_IK.shape
    padded = F.pad(x_IK.float(), (0, -n_inner % TILE, 0, -n_rows % rows))
    tiles_JUQT = padded.unflatten(1, (-1, TILE)).unflatten(0, (-1, rows))
    scales_JQ = tiles_JUQT.abs().amax((1, 3)).div_(LARGEST).clamp_min_(SMALLEST_SCALE)
    if power_of_two:
        scales_JQ = _power_of_two_above(scales_JQ)
    values = (tiles_JUQT / scales_JQ[:, None, :, None]).to(FORMAT)
    return Quantised(values.flatten(2).flatten(0, 1)[:n_rows, :n_inner], scales_JQ, rows)


def product(left: Quantised, right: Quantised, dtype: torch.dtype = torch.float32) -> Tensor:
    """left right^T (I, O), summed in float32, promoted after every 128 of K and rounded once to `dtype`."""
    total_IO = left.scales.new_zeros(left.values_IK.shape[0], right.values_IK.shape[0])
    left_IQ, right_OQ = left.scales_IQ, right.scales_IQ
    for tile, begin in enumerate(range(0, left.values_IK.shape[1], TILE)):
        inner = slice(begin, begin + TILE)
        part_IO = left.values_IK[:, inner].float() @ right.values_IK[:, inner].float().t()
        total_IO += part_IO * left_IQ[:, tile, None] * right_OQ[:, tile]
    return total_IO.to(dtype)


def grouped_product(
    left_MK: Quantised, rights_EOK: Sequence[Quantised], counts_E: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Rows sorted by expert, counts_E of each, times the matrix of their expert (M, O)."""
    parts, begin = [], 0
    for right, count in zip(rights_EOK, counts_E, strict=True):
        rows = slice(begin, begin + count)
        parts.append(product(Quantised(left_MK.values_IK[rows], left_MK.scales[rows], 1), right, dtype))
        begin += count
    return torch.cat(parts)


def _power_of_two_above(scales: Tensor) -> Tensor:
    """2 ** ceil(log2(scale)), exactly; what is not finite stays."""
    mantissa, exponent = torch.frexp(scales)  # mantissa in [0.5, 1)
    rounded = torch.ldexp(torch.ones_like(scales), exponent - (mantissa == 0.5).to(exponent.dtype))
    return torch.where(scales.isfinite(), rounded, scales)
