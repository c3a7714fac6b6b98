"""Products with matrices that stay in FP8: a factor for every 128 x 128 block, as DeepSeek-V3 is released (3.3).

Activations keep their own dtype. A band of rows is multiplied out, used and forgotten, by the arithmetic of a loader
that multiplies out the whole matrix (value times factor in float32, rounded once), so the two differ by the order of
sums. On a GPU with FP8 tensor cores the input is quantised in 1 x 128 tiles instead, as the released inference code
does, and the product is torch's scaled one (kernels/scaled.py).

torch widens FP8 one number at a time on CPUs. E4M3 is the top of a float16 whose exponent counts from another place:
shifted by seven bits it stands for 2**-8 of itself, denormals included, and a float16 is widened by one instruction.

Shapes: N tokens, I input and O output width, T rows of a band.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sobre.kernels.fp8 import FORMAT, TILE, Quantised

FP8 = (FORMAT, torch.float8_e5m2)
BAND_NUMBERS = 1 << 19
"""Numbers that are multiplied out at a time, about; at least a row of blocks."""


class Blocks(NamedTuple):
    """A matrix in FP8 and its factors."""

    values_OI: Tensor
    factors: Tensor
    """(ceil(O / 128), ceil(I / 128))"""


def reference(x_NI: Tensor, weight: Blocks) -> Tensor:
    """x W^T, W multiplied out as one."""
    whole_OI = Quantised(weight.values_OI, weight.factors.float(), TILE).dequantised()
    return F.linear(x_NI, whole_OI.to(x_NI.dtype))


def linear(x_NI: Tensor, weight: Blocks) -> Tensor:
    """x W^T, W multiplied out band by band, all in the same memory."""
    n_out, n_in = weight.values_OI.shape
    rows = min(n_out, TILE * max(1, BAND_NUMBERS // (TILE * n_in)))
    place_BI, parts = x_NI.new_empty(rows, n_in), []
    for begin in range(0, n_out, rows):
        factors = weight.factors[begin // TILE : -(-(begin + rows) // TILE)]
        band = Blocks(weight.values_OI[begin : begin + rows], factors)
        parts.append(F.linear(x_NI, multiply_into(place_BI[: len(band.values_OI)], band)))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def multiplied_out(weight: Blocks, dtype: torch.dtype) -> Tensor:
    """The matrix that the blocks stand for, rounded once to `dtype`."""
    return multiply_into(torch.empty(weight.values_OI.shape, dtype=dtype, device=weight.values_OI.device), weight)


def multiply_into(place_OI: Tensor, weight: Blocks) -> Tensor:
    """The same into memory that is there; the last blocks may be cut. NaN is not among the values (see shards)."""
    values_OI, n_in = weight.values_OI, weight.values_OI.shape[1]
    shifts = values_OI.dtype == FORMAT and values_OI.device.type == "cpu"
    codes = torch.empty(TILE, n_in, dtype=torch.int16) if shifts else None
    for row, factors in enumerate(weight.factors.float()):
        rows = slice(row * TILE, (row + 1) * TILE)
        band_TI, factors_I = values_OI[rows], factors.repeat_interleave(TILE)[:n_in]
        if codes is None:
            wide_TI = band_TI.float().mul_(factors_I)
        else:
            codes_TI = codes[: len(band_TI)].copy_(band_TI.view(torch.int8)).mul_(1 << 7).bitwise_and_(~0x4000)
            wide_TI = codes_TI.view(torch.float16).float().mul_(factors_I * 256)
        place_OI[rows] = wide_TI
    return place_OI
