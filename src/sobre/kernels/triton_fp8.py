"""FP8 after DeepSeek-V3 on a GPU, in Triton: quantise by tiles, and multiply with promotion after every 128 (arXiv
2412.19437, 3.3.2). The specification is `fp8.py`.

The tensor cores add the products of 128 of the contraction; each such part is multiplied by its two scales and added in
float32. One kernel serves a plain product and a grouped one: every tile of rows belongs to one expert.

Shapes: I rows of the left and O rows of the right operand, K the contraction, Q tiles of 128 of it, E experts, M rows
sorted by expert, X tiles of rows.
"""

import os
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sobre.kernels.fp8 import FORMAT, TILE, Quantised

ROWS, COLUMNS = 64, 128
"""Of the tile of results that one program makes."""
FEW = 8
"""Rows of 1 x 128 tiles that one program quantises."""


def quantise(x_IK: Tensor, rows: int, power_of_two: bool = False) -> Quantised:
    """The same function as `fp8.quantise`."""
    n_rows, n_inner = x_IK.shape
    n_tiles = triton.cdiv(n_inner, TILE)
    values_IK = torch.empty(n_rows, n_inner, dtype=FORMAT, device=x_IK.device)
    scales = torch.empty(triton.cdiv(n_rows, rows), n_tiles, dtype=torch.float32, device=x_IK.device)
    height = FEW if rows == 1 else TILE
    _quantise_kernel[(triton.cdiv(n_rows, height), n_tiles)](
        x_IK,
        values_IK,
        scales,
        n_rows,
        n_inner,
        x_IK.stride(0),
        x_IK.stride(1),
        n_tiles,
        ONE_ROW=rows == 1,
        POWER_OF_TWO=power_of_two,
        HEIGHT=height,
        TILE=TILE,
    )
    return Quantised(values_IK, scales, rows)


def product(left: Quantised, right: Quantised, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same function as `fp8.product`."""
    n_rows = left.values_IK.shape[0]
    begins_X = torch.arange(0, n_rows, ROWS, device=left.values_IK.device)
    ends_X = (begins_X + ROWS).clamp_(max=n_rows)
    stacked = Quantised(right.values_IK.unsqueeze(0), right.scales.unsqueeze(0), right.rows)
    return _multiplied(left, stacked, torch.zeros_like(begins_X), begins_X, ends_X, dtype)


def grouped_product(
    left_MK: Quantised, rights_EOK: Sequence[Quantised], counts_E: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """The same function as `fp8.grouped_product`."""
    device = left_MK.values_IK.device
    tiles = [
        (expert, begin, min(begin + ROWS, last))
        for expert, (first, last) in enumerate(_spans(counts_E))
        for begin in range(first, last, ROWS)
    ]
    experts_X, begins_X, ends_X = torch.tensor(tiles, dtype=torch.long).view(-1, 3).to(device).unbind(1)
    values_EOK = torch.stack([right.values_IK for right in rights_EOK])
    stacked = Quantised(values_EOK, torch.stack([right.scales for right in rights_EOK]), rights_EOK[0].rows)
    return _multiplied(left_MK, stacked, experts_X.contiguous(), begins_X.contiguous(), ends_X.contiguous(), dtype)


def _spans(counts_E: Sequence[int]) -> list[tuple[int, int]]:
    """First and last row of each expert."""
    spans, end = [], 0
    for count in counts_E:
        spans.append((end, end + count))
        end += count
    return spans


def _multiplied(
    left: Quantised, stacked: Quantised, experts_X: Tensor, begins_X: Tensor, ends_X: Tensor, dtype: torch.dtype
) -> Tensor:
    """The product of the left rows with the matrices of their experts; FP8 products want both operands K by K."""
    values_IK, values_EOK = left.values_IK.contiguous(), stacked.values_IK.contiguous()
    left_scales, right_scales = left.scales.contiguous(), stacked.scales.contiguous()
    n_inner, n_columns = values_IK.shape[1], values_EOK.shape[1]
    out_IO = torch.empty(values_IK.shape[0], n_columns, dtype=dtype, device=values_IK.device)
    if out_IO.numel():
        _product_kernel[(experts_X.numel(), triton.cdiv(n_columns, COLUMNS))](
            values_IK.view(torch.uint8),  # as bytes, for what lies outside is filled with a byte
            values_EOK.view(torch.uint8),
            out_IO,
            left_scales,
            right_scales,
            experts_X,
            begins_X,
            ends_X,
            n_inner,
            n_columns,
            left_scales.shape[1],
            right_scales.shape[-1],
            RIGHT_ROWS=stacked.rows,
            WIDEN=os.environ.get("TRITON_INTERPRET") == "1",  # the interpreter multiplies FP8 as if it were integers
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            TILE=TILE,
        )
    return out_IO


@triton.jit
def _quantise_kernel(
    x_ptr,
    values_ptr,
    scales_ptr,
    n_rows,
    n_inner,
    row_stride,
    inner_stride,
    n_tiles,
    ONE_ROW: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    HEIGHT: tl.constexpr,
    TILE: tl.constexpr,
):
    """HEIGHT rows of one tile of the contraction: a scale for each row, or one for all."""
    block, tile = tl.program_id(0), tl.program_id(1)
    row = (block * HEIGHT + tl.arange(0, HEIGHT)).to(tl.int64)
    inner = tile * TILE + tl.arange(0, TILE)
    inside = (row < n_rows)[:, None] & (inner < n_inner)[None, :]
    x = tl.load(x_ptr + row[:, None] * row_stride + inner[None, :] * inner_stride, mask=inside, other=0.0)
    x = x.to(tl.float32)
    is_bad = ((x != x) | (tl.abs(x) == float("inf"))).to(tl.int32)
    largest, bad = tl.max(tl.where(is_bad > 0, 0.0, tl.abs(x)), 1), tl.max(is_bad, 1)
    if not ONE_ROW:
        largest = tl.zeros((HEIGHT,), dtype=tl.float32) + tl.max(largest, 0)
        bad = tl.zeros((HEIGHT,), dtype=tl.int32) + tl.max(bad, 0)
    scale = tl.maximum(tl.div_rn(largest, 448.0 + 0.0 * largest), 1.1754943508222875e-38)
    if POWER_OF_TWO:
        bits = scale.to(tl.int32, bitcast=True)
        up = (bits & 0x7F800000) + tl.where((bits & 0x7FFFFF) != 0, 0x800000, 0)
        scale = up.to(tl.float32, bitcast=True)
    scale = tl.where(bad > 0, float("nan"), scale)
    values = _to_e4m3(tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape)))
    at = row[:, None] * n_inner + inner[None, :]
    tl.store(values_ptr + at, values.to(values_ptr.dtype.element_ty), mask=inside)
    if ONE_ROW:
        tl.store(scales_ptr + row * n_tiles + tile, scale, mask=row < n_rows)
    else:
        tl.store(scales_ptr + block * n_tiles + tile, tl.max(scale, 0))
        if tl.max(bad, 0) > 0:
            tl.store(scales_ptr + block * n_tiles + tile, float("nan"))


@triton.jit
def _to_e4m3(x):
    """The nearest numbers of E4M3, ties to even, still in float32: the cast then changes nothing, whoever does it."""
    bits = x.to(tl.int32, bitcast=True)
    bits += 0x7FFFF + ((bits >> 20) & 1)  # 3 bits of the mantissa stay
    rounded = (bits & -0x100000).to(tl.float32, bitcast=True)
    magic = 12582912.0  # 1.5 * 2**23: adding it rounds to whole numbers
    small = ((x * 512.0 + magic) - magic) * 0.001953125  # denormals: multiples of 2**-9
    return tl.where(tl.abs(x) < 0.015625, small, tl.where(x == x, rounded, x))


@triton.jit
def _product_kernel(
    left_ptr,
    right_ptr,
    out_ptr,
    left_scales_ptr,
    right_scales_ptr,
    experts_ptr,
    begins_ptr,
    ends_ptr,
    n_inner,
    n_columns,
    n_tiles,
    right_tiles,
    RIGHT_ROWS: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    """ROWS rows of one expert times COLUMNS rows of its matrix."""
    tile = tl.program_id(0)
    expert, begin, end = tl.load(experts_ptr + tile), tl.load(begins_ptr + tile), tl.load(ends_ptr + tile)
    row = begin + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_row, is_column = row < end, column < n_columns
    scale_row = column if RIGHT_ROWS == 1 else column // TILE
    n_scale_rows = n_columns if RIGHT_ROWS == 1 else tl.cdiv(n_columns, TILE)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for q in range(n_tiles):
        inner = q * TILE + tl.arange(0, TILE)
        is_inner = inner < n_inner
        left_at = left_ptr + row[:, None] * n_inner + inner[None, :]
        right_at = right_ptr + (expert * n_columns + column)[:, None] * n_inner + inner[None, :]
        left = tl.load(left_at, mask=is_row[:, None] & is_inner[None, :], other=0).to(tl.float8e4nv, bitcast=True)
        right = tl.load(right_at, mask=is_column[:, None] & is_inner[None, :], other=0)
        right = right.to(tl.float8e4nv, bitcast=True)
        left_scale = tl.load(left_scales_ptr + row * n_tiles + q, mask=is_row, other=0.0)
        right_scale_at = right_scales_ptr + (expert * n_scale_rows + scale_row) * right_tiles + q
        right_scale = tl.load(right_scale_at, mask=is_column, other=0.0)
        if WIDEN:
            part = tl.dot(left.to(tl.float32), tl.trans(right.to(tl.float32)), input_precision="ieee")
        else:
            part = tl.dot(left, tl.trans(right))
        total += part * left_scale[:, None] * right_scale[None, :]
    out_at = out_ptr + row[:, None] * n_columns + column[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])
