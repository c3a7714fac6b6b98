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
E experts, whose matrices lie one after the other; P rows sorted by expert and filled up with zeros, so that each of the
X blocks of 128 belongs to one expert. Inside `quantise`: J rows of tiles, U rows of one, T its 128 numbers.
"""

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
    """A matrix in E4M3, or one for each expert; `values * scales` is what it stands for."""

    values_IK: Tensor
    """(E, I, K) for experts."""
    scales: Tensor
    """Float32: (I, Q) for tiles of one row, (ceil(I / 128), Q) for blocks; E of these for experts."""
    rows: int
    """Rows that share a scale: 1 or 128."""

    @property
    def scales_IQ(self) -> Tensor:
        """One scale for each row and tile."""
        n_rows = self.values_IK.shape[-2]
        return self.scales if self.rows == 1 else self.scales.repeat_interleave(TILE, -2)[..., :n_rows, :]

    def dequantised(self) -> Tensor:
        """The numbers it stands for, in float32."""
        n_inner = self.values_IK.shape[-1]
        return self.values_IK.float() * self.scales_IQ.repeat_interleave(TILE, -1)[..., :n_inner]

    def transposed(self) -> "Quantised":
        """The same numbers as (K, I); blocks alone are square, tiles must be quantised again."""
        assert self.rows == TILE, "a 1 x 128 tile along K is no tile along I"
        return Quantised(self.values_IK.mT, self.scales.mT, TILE)


def quantise(x_IK: Tensor, rows: int, power_of_two: bool = False) -> Quantised:
    """Round to E4M3 with a scale for each `rows` x 128 tile of each matrix; the last tiles may be smaller."""
    n_rows, n_inner = x_IK.shape[-2:]
    padded = F.pad(x_IK.float(), (0, -n_inner % TILE, 0, -n_rows % rows))
    tiles_JUQT = padded.unflatten(-1, (-1, TILE)).unflatten(-3, (-1, rows))
    scales_JQ = tiles_JUQT.abs().amax((-3, -1)).div_(LARGEST).clamp_min_(SMALLEST_SCALE)
    if power_of_two:
        scales_JQ = _power_of_two_above(scales_JQ)
    values = (tiles_JUQT / scales_JQ[..., :, None, :, None]).to(FORMAT)
    return Quantised(values.flatten(-2).flatten(-3, -2)[..., :n_rows, :n_inner], scales_JQ, rows)


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
    left_PK: Quantised, rights_EOK: Quantised, expert_X: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Every block of 128 rows times the matrix of its expert (P, O); zeros where that is E, no expert."""
    n_experts = rights_EOK.values_IK.shape[0]
    last_X = expert_X.clamp(max=n_experts - 1)  # rows of zeros meet any matrix
    left_XTK, scales_XTQ = (x.unflatten(0, (-1, TILE)) for x in (left_PK.values_IK, left_PK.scales_IQ))
    right_EOQ = rights_EOK.scales_IQ
    total_XTO = left_PK.scales.new_zeros(*left_XTK.shape[:2], rights_EOK.values_IK.shape[1])
    for tile, begin in enumerate(range(0, left_XTK.shape[2], TILE)):
        inner = slice(begin, begin + TILE)
        part_XTO = left_XTK[..., inner].float() @ rights_EOK.values_IK[..., inner].float()[last_X].mT
        total_XTO += part_XTO * scales_XTQ[..., tile, None] * right_EOQ[..., tile][last_X].unsqueeze(1)
    return (total_XTO * (expert_X < n_experts)[:, None, None]).flatten(0, 1).to(dtype)


def grouped_wgrad(left_FP: Quantised, right_DP: Quantised, expert_X: Tensor, n_experts: int) -> Tensor:
    """left right^T over the blocks of each expert (E, F, D), in float32: P is the contraction."""
    n_rows, n_columns = left_FP.values_IK.shape[0], right_DP.values_IK.shape[0]
    total_EFD = left_FP.scales.new_zeros(n_experts + 1, n_rows, n_columns)
    for block in range(len(expert_X)):
        inner = slice(block * TILE, (block + 1) * TILE)
        part_FD = left_FP.values_IK[:, inner].float() @ right_DP.values_IK[:, inner].float().t()
        part_FD *= left_FP.scales[:, block, None] * right_DP.scales[:, block]
        total_EFD.index_add_(0, expert_X[block : block + 1], part_FD.unsqueeze(0))
    return total_EFD[:-1]


def _power_of_two_above(scales: Tensor) -> Tensor:
    """2 ** ceil(log2(scale)), exactly; what is not finite stays."""
    mantissa, exponent = torch.frexp(scales)  # mantissa in [0.5, 1)
    rounded = torch.ldexp(torch.ones_like(scales), exponent - (mantissa == 0.5).to(exponent.dtype))
    return torch.where(scales.isfinite(), rounded, scales)
