"""Products with weights in 8 or 4 bits on a GPU (Triton): the codes are widened in registers, so that memory is read at
their width. Few rows alone, as in decoding: for many the weights are multiplied out once and the library multiplies.

One kernel serves a plain product and that of experts. There the rows are sorted by expert and cut into tiles of one
expert each; which expert, and where a tile begins and ends, is worked out on the device (`tiles`).

Shapes: N tokens, D width, E experts, A active, F expert width, O output and I input width of a matrix, M copies
(N * A) sorted by expert, T tiles of their rows.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from sobre.kernels import coded
from sobre.kernels import experts as routed
from sobre.kernels.coded import GROUP, Bits, Coded
from sobre.kernels.triton_experts import sum_rows, take_rows, weighted_swiglu

ROWS, OUTS, INPUTS = 16, 32, 128
"""Of one program: rows (the least that a tensor core multiplies), outputs, and inputs that it reads together."""
MOST_ROWS = 64
"""Of one matrix, beyond which it is multiplied out."""


class Tiles(NamedTuple):
    """Rows sorted by expert, cut into tiles; as many as there may be at most, the last ones empty."""

    expert_T: Tensor
    begin_T: Tensor
    end_T: Tensor


def pack(scales: Tensor, codes_OI: Tensor, bits: Bits) -> Coded:
    """int8 as it is; int4 two codes to a byte (`coded.in_nibbles`)."""
    codes = codes_OI.contiguous() if bits == "int8" else coded.in_nibbles(codes_OI)
    return Coded(codes, scales.contiguous(), bits)


def linear(x_NI: Tensor, weight: Coded) -> Tensor:
    """The same function as `coded.linear`."""
    if len(x_NI) > MOST_ROWS:
        return F.linear(x_NI, _wide(weight, x_NI.dtype))
    stacked = Coded(weight.codes.unsqueeze(0), weight.scales.unsqueeze(0), weight.bits)
    return _multiplied(x_NI, stacked, None)


def experts(x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate: Coded, up: Coded, down: Coded) -> Tensor:
    """The same function as `coded.experts`."""
    n_experts = len(gate.codes)
    if experts_NA.numel() > MOST_ROWS * n_experts:
        wide = [_wide(weight, x_ND.dtype) for weight in (gate, up, down)]
        parts = routed.Parts(take_rows, weighted_swiglu, sum_rows)
        return routed.moe_ffn(x_ND, experts_NA, weights_NA, wide[0], wide[1], wide[2], parts)
    rows = routed.order(experts_NA, n_experts)
    cut = tiles(rows.ends_E, experts_NA.numel())
    x_MD = take_rows(x_ND, rows.token_M, rows.place_NA)
    weights_M = weights_NA.to(x_ND.dtype).flatten()[rows.copy_M]
    inner_MF = weighted_swiglu(_multiplied(x_MD, gate, cut), _multiplied(x_MD, up, cut), weights_M)
    return sum_rows(_multiplied(inner_MF, down, cut), rows.token_M, rows.place_NA)


def tiles(ends_E: Tensor, n_rows: int) -> Tiles:
    """Cut `n_rows` rows, those of each expert ending where `ends_E` says; the device is not asked how many they are."""
    starts_E = F.pad(ends_E[:-1], (1, 0))
    tiles_E = ((ends_E - starts_E + (ROWS - 1)) // ROWS).cumsum(0)
    most = min(n_rows, triton.cdiv(n_rows, ROWS) + len(ends_E))
    tile_T = torch.arange(most, device=ends_E.device)
    expert_T = torch.searchsorted(tiles_E, tile_T, right=True).clamp_max_(len(ends_E) - 1)
    first_T = F.pad(tiles_E[:-1], (1, 0))[expert_T]
    begin_T = starts_E[expert_T] + (tile_T - first_T) * ROWS
    return Tiles(expert_T, begin_T, torch.minimum(begin_T + ROWS, ends_E[expert_T]))


def _wide(weight: Coded, dtype: torch.dtype) -> Tensor:
    codes = weight.codes if weight.bits == "int8" else coded.from_nibbles(weight.codes)
    return coded.multiplied_out(codes, weight.scales, weight.bits, dtype)


def _multiplied(x_MI: Tensor, stacked: Coded, cut: Tiles | None) -> Tensor:
    """Rows times the one matrix of a stack, or that of their tile."""
    x_MI, (n_rows, n_in) = x_MI.contiguous(), x_MI.shape
    n_out = stacked.codes.shape[1]
    out_MO = x_MI.new_empty(n_rows, n_out)
    if not out_MO.numel():
        return out_MO
    n_tiles = triton.cdiv(n_rows, ROWS) if cut is None else len(cut.expert_T)
    _product_kernel[(n_tiles, triton.cdiv(n_out, OUTS))](
        x_MI,
        stacked.codes,
        stacked.scales,
        out_MO,
        *(cut if cut is not None else (out_MO, out_MO, out_MO)),  # not read where there is one matrix
        n_rows,
        n_in,
        n_out,
        GROUPED=cut is not None,
        FOUR_BITS=stacked.bits == "int4",
        ROWS=ROWS,
        OUTS=OUTS,
        INPUTS=INPUTS,
        GROUP=GROUP,
    )
    return out_MO


@triton.jit
def _product_kernel(
    x_ptr,
    codes_ptr,
    scales_ptr,
    out_ptr,
    expert_ptr,
    begin_ptr,
    end_ptr,
    n_rows,
    n_in,
    n_out,
    GROUPED: tl.constexpr,
    FOUR_BITS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """ROWS rows of one matrix times OUTS of its channels, summed in float32."""
    tile = tl.program_id(0)
    out = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
    if GROUPED:
        expert = tl.load(expert_ptr + tile).to(tl.int64)
        begin = tl.load(begin_ptr + tile).to(tl.int64)
        end = tl.load(end_ptr + tile).to(tl.int64)
    else:
        expert = tl.full((), 0, tl.int64)
        begin = tile.to(tl.int64) * ROWS
        end = tl.minimum(begin + ROWS, n_rows)
    row = begin + tl.arange(0, ROWS)
    is_row, is_out = row < end, out < n_out
    channel = expert * n_out + out
    x_row = x_ptr + row[:, None] * n_in
    total = tl.zeros((ROWS, OUTS), dtype=tl.float32)
    if FOUR_BITS:
        HALF: tl.constexpr = GROUP // 2
        for at in range(0, tl.where(begin < end, n_in // 2, 0), INPUTS // 2):
            byte = at + tl.arange(0, INPUTS // 2)
            inside = byte < n_in // 2
            group = byte // HALF
            low = group * GROUP + byte % HALF
            here = is_out[:, None] & inside[None, :]
            codes = tl.load(codes_ptr + channel[:, None] * (n_in // 2) + byte, mask=here, other=0).to(tl.int32)
            scale = tl.load(scales_ptr + channel[:, None] * (n_in // GROUP) + group, mask=here, other=0.0)
            taken = is_row[:, None] & inside[None, :]
            x_low = tl.load(x_row + low, mask=taken, other=0.0)
            x_high = tl.load(x_row + low + HALF, mask=taken, other=0.0)
            w_low = (((codes & 15) - 8).to(tl.float32) * scale.to(tl.float32)).to(x_low.dtype)
            w_high = ((((codes >> 4) & 15) - 8).to(tl.float32) * scale.to(tl.float32)).to(x_low.dtype)
            total += tl.dot(x_low, tl.trans(w_low), input_precision="ieee")
            total += tl.dot(x_high, tl.trans(w_high), input_precision="ieee")
    else:
        for at in range(0, tl.where(begin < end, n_in, 0), INPUTS):
            column = at + tl.arange(0, INPUTS)
            inside = column < n_in
            here = is_out[:, None] & inside[None, :]
            x = tl.load(x_row + column, mask=is_row[:, None] & inside[None, :], other=0.0)
            codes = tl.load(codes_ptr + channel[:, None] * n_in + column, mask=here, other=0)
            total += tl.dot(x, tl.trans(codes.to(x.dtype)), input_precision="ieee")
        total *= tl.load(scales_ptr + channel, mask=is_out, other=0.0).to(tl.float32)[None, :]
    at_out = out_ptr + row[:, None] * n_out + out
    tl.store(at_out, total.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & is_out[None, :])
