"""FP8 after DeepSeek-V3 on a GPU, in Triton: quantise by tiles, and multiply with promotion after every 128 (arXiv
2412.19437, 3.3.2). The specification is `fp8.py`.

The tensor cores add the products of 128 of the contraction; each such part is multiplied by its two scales and added in
float32. One kernel serves a plain product and a grouped one, whose blocks of 128 rows each belong to one expert; the
gradient of the experts' weights runs over the blocks of each. Which expert a block belongs to is read by the kernels.

Shapes: I rows of the left and O rows of the right operand, K the contraction, Q tiles of 128 of it, E experts, P rows
sorted by expert and filled up, X blocks of 128 of them, F and D the sides of a gradient.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from sobre.kernels.fp8 import FORMAT, TILE, Quantised

ROWS, COLUMNS = 64, 128
"""Of the tile of results that one program makes; ROWS divides 128."""
FEW = 8
"""Rows of 1 x 128 tiles that one program quantises."""


def quantise(x_IK: Tensor, rows: int, power_of_two: bool = False) -> Quantised:
    """The same function as `fp8.quantise`."""
    if x_IK.ndim == 2:
        found = quantise(x_IK.unsqueeze(0), rows, power_of_two)
        return Quantised(found.values_IK[0], found.scales[0], rows)
    n_matrices, n_rows, n_inner = x_IK.shape
    n_tiles, n_scale_rows = triton.cdiv(n_inner, TILE), triton.cdiv(n_rows, rows)
    values_IK = torch.empty(n_matrices, n_rows, n_inner, dtype=FORMAT, device=x_IK.device)
    scales = torch.empty(n_matrices, n_scale_rows, n_tiles, dtype=torch.float32, device=x_IK.device)
    height = FEW if rows == 1 else TILE
    if values_IK.numel():
        _quantise_kernel[(triton.cdiv(n_rows, height), n_tiles, n_matrices)](
            x_IK,
            values_IK,
            scales,
            n_rows,
            n_inner,
            x_IK.stride(0),
            x_IK.stride(1),
            x_IK.stride(2),
            n_scale_rows,
            n_tiles,
            ONE_ROW=rows == 1,
            POWER_OF_TWO=power_of_two,
            HEIGHT=height,
            TILE=TILE,
        )
    return Quantised(values_IK, scales, rows)


def product(left: Quantised, right: Quantised, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same function as `fp8.product`."""
    stacked = Quantised(right.values_IK.unsqueeze(0), right.scales.unsqueeze(0), right.rows)
    return _multiplied(left, stacked, None, dtype)


def grouped_product(
    left_PK: Quantised, rights_EOK: Quantised, expert_X: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The same function as `fp8.grouped_product`."""
    return _multiplied(left_PK, rights_EOK, expert_X, dtype)


def _multiplied(left: Quantised, stacked: Quantised, expert_X: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The left rows times the one matrix, or that of their block; FP8 products want both operands K by K."""
    values_IK, values_EOK = _bytes(left), _bytes(stacked)
    left_scales, right_scales = left.scales.contiguous(), stacked.scales.contiguous()
    (n_rows, n_inner), (n_experts, n_columns) = values_IK.shape, values_EOK.shape[:2]
    out_IO = torch.empty(n_rows, n_columns, dtype=dtype, device=values_IK.device)
    if out_IO.numel():
        _product_kernel[(triton.cdiv(n_rows, ROWS), triton.cdiv(n_columns, COLUMNS))](
            values_IK,
            values_EOK,
            out_IO,
            left_scales,
            right_scales,
            out_IO if expert_X is None else expert_X,  # not read where there is one matrix
            n_rows,
            n_inner,
            n_columns,
            n_experts,
            left_scales.shape[1],
            right_scales.shape[1],
            GROUPED=expert_X is not None,
            RIGHT_ROWS=stacked.rows,
            WIDEN=_widens(),
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            TILE=TILE,
        )
    return out_IO


def grouped_wgrad(left_FP: Quantised, right_DP: Quantised, expert_X: Tensor, n_experts: int) -> Tensor:
    """The same function as `fp8.grouped_wgrad`."""
    values_FP, values_DP = _bytes(left_FP), _bytes(right_DP)
    (n_rows, n_inner), n_columns = values_FP.shape, values_DP.shape[0]
    ends_E1 = torch.searchsorted(expert_X, torch.arange(n_experts + 1, device=expert_X.device))
    out_EFD = torch.empty(n_experts, n_rows, n_columns, dtype=torch.float32, device=values_FP.device)
    _wgrad_kernel[(n_experts, triton.cdiv(n_rows, ROWS), triton.cdiv(n_columns, COLUMNS))](
        values_FP,
        values_DP,
        out_EFD,
        left_FP.scales.contiguous(),
        right_DP.scales.contiguous(),
        ends_E1,
        n_rows,
        n_inner,
        n_columns,
        WIDEN=_widens(),
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        TILE=TILE,
    )
    return out_EFD


def _bytes(operand: Quantised) -> Tensor:
    """Its numbers as bytes, for what lies outside is filled with a byte."""
    return operand.values_IK.contiguous().view(torch.uint8)


def _widens() -> bool:
    """The interpreter multiplies FP8 as if it were integers."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _quantise_kernel(
    x_ptr,
    values_ptr,
    scales_ptr,
    n_rows,
    n_inner,
    matrix_stride,
    row_stride,
    inner_stride,
    n_scale_rows,
    n_tiles,
    ONE_ROW: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    HEIGHT: tl.constexpr,
    TILE: tl.constexpr,
):
    """HEIGHT rows of one tile of the contraction: a scale for each row, or one for all."""
    block, tile, matrix = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    x_ptr += matrix * matrix_stride
    values_ptr += matrix * n_rows * n_inner
    scales_ptr += matrix * n_scale_rows * n_tiles
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
    n_rows,
    n_inner,
    n_columns,
    n_experts,
    n_tiles,
    n_scale_rows,
    GROUPED: tl.constexpr,
    RIGHT_ROWS: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    """ROWS rows, all of one expert, times COLUMNS rows of its matrix."""
    begin = tl.program_id(0).to(tl.int64) * ROWS
    row = begin + tl.arange(0, ROWS)
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    last = n_tiles
    if GROUPED:
        expert = tl.load(experts_ptr + begin // TILE)
        right_ptr += expert * n_columns * n_inner
        right_scales_ptr += expert * n_scale_rows * n_tiles
        last = tl.where(expert < n_experts, n_tiles, 0)  # rows of no expert: zeros
    scale_row = column if RIGHT_ROWS == 1 else column // TILE
    total = _sum_of_tiles(
        left_ptr + row[:, None] * n_inner,
        right_ptr + column[:, None] * n_inner,
        left_scales_ptr + row * n_tiles,
        right_scales_ptr + scale_row * n_tiles,
        row < n_rows,
        column < n_columns,
        n_inner,
        0,
        last,
        WIDEN,
        ROWS,
        COLUMNS,
        TILE,
    )
    inside = (row < n_rows)[:, None] & (column < n_columns)[None, :]
    out_at = out_ptr + row[:, None] * n_columns + column[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _wgrad_kernel(
    left_ptr,
    right_ptr,
    out_ptr,
    left_scales_ptr,
    right_scales_ptr,
    ends_ptr,
    n_rows,
    n_inner,
    n_columns,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    """ROWS times COLUMNS numbers of one expert's gradient; its blocks of the contraction begin and end in `ends`."""
    expert = tl.program_id(0).to(tl.int64)
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = (tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    n_tiles = n_inner // TILE
    total = _sum_of_tiles(
        left_ptr + row[:, None] * n_inner,
        right_ptr + column[:, None] * n_inner,
        left_scales_ptr + row * n_tiles,
        right_scales_ptr + column * n_tiles,
        row < n_rows,
        column < n_columns,
        n_inner,
        tl.load(ends_ptr + expert),
        tl.load(ends_ptr + expert + 1),
        WIDEN,
        ROWS,
        COLUMNS,
        TILE,
    )
    inside = (row < n_rows)[:, None] & (column < n_columns)[None, :]
    tl.store(out_ptr + (expert * n_rows + row)[:, None] * n_columns + column[None, :], total, mask=inside)


@triton.jit
def _sum_of_tiles(
    left_at,
    right_at,
    left_scale_at,
    right_scale_at,
    is_row,
    is_column,
    n_inner,
    first,
    last,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    """left right^T over tiles first to last of the contraction; the pointers are those of the rows' beginnings."""
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for q in range(first, last):
        inner = q * TILE + tl.arange(0, TILE)
        is_inner = inner < n_inner
        left = tl.load(left_at + inner[None, :], mask=is_row[:, None] & is_inner[None, :], other=0)
        right = tl.load(right_at + inner[None, :], mask=is_column[:, None] & is_inner[None, :], other=0)
        left, right = left.to(tl.float8e4nv, bitcast=True), right.to(tl.float8e4nv, bitcast=True)
        left_scale = tl.load(left_scale_at + q, mask=is_row, other=0.0)
        right_scale = tl.load(right_scale_at + q, mask=is_column, other=0.0)
        if WIDEN:
            part = tl.dot(left.to(tl.float32), tl.trans(right.to(tl.float32)), input_precision="ieee")
        else:
            part = tl.dot(left, tl.trans(right))
        total += part * left_scale[:, None] * right_scale[None, :]
    return total
