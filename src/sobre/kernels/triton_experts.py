"""The memory-bound parts of the routed experts in Triton: each reads its operands once and writes its result once.

`reference.py` says what they are; `experts.py` says where they stand. A row is one program, or several side by side
where it is wide; sums run in float32.

Shapes: N tokens, D width, A active, F expert width, M copies (N * A), sorted by expert.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDE = 1024
"""Numbers of a row that one program moves."""


def take_rows(x_ND: Tensor, token_M: Tensor, place_NA: Tensor) -> Tensor:
    """The same function as `reference.take_rows`."""
    return _TakeRows.apply(x_ND, token_M, place_NA)


def sum_rows(y_MD: Tensor, token_M: Tensor, place_NA: Tensor) -> Tensor:
    """The same function as `reference.sum_rows`."""
    return _SumRows.apply(y_MD, token_M, place_NA)


def weighted_swiglu(gate_MF: Tensor, up_MF: Tensor, weights_M: Tensor) -> Tensor:
    """The same function as `reference.weighted_swiglu`."""
    return _WeightedSwiGLU.apply(gate_MF, up_MF, weights_M)


@triton.jit
def _copy_kernel(x_ptr, row_ptr, out_ptr, width, WIDE: tl.constexpr):
    """out[m] = x[row[m]]."""
    m, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside = column < width
    row = tl.load(row_ptr + m)
    tl.store(out_ptr + m * width + column, tl.load(x_ptr + row * width + column, mask=inside), mask=inside)


@triton.jit
def _sum_kernel(y_ptr, place_ptr, out_ptr, width, N_ACTIVE: tl.constexpr, WIDE: tl.constexpr):
    """out[n] = sum over a of y[place[n, a]], in float32."""
    n, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside = column < width
    total = tl.zeros((WIDE,), dtype=tl.float32)
    for a in range(N_ACTIVE):
        place = tl.load(place_ptr + n * N_ACTIVE + a)
        total += tl.load(y_ptr + place * width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + n * width + column, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_kernel(gate_ptr, up_ptr, weight_ptr, out_ptr, width, WIDE: tl.constexpr):
    """out[m] = silu(gate[m]) * up[m] * weight[m]."""
    m, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside, at = column < width, m * width + column
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + m).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up * weight
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward_kernel(
    gate_ptr, up_ptr, weight_ptr, dout_ptr, dgate_ptr, dup_ptr, dweight_ptr, width, WIDE: tl.constexpr
):
    """Gradients of one row; the one of its weight is a sum over the whole row."""
    m = tl.program_id(0).to(tl.int64)
    weight = tl.load(weight_ptr + m).to(tl.float32)
    dweight = tl.zeros((WIDE,), dtype=tl.float32)
    for begin in range(0, width, WIDE):
        column = begin + tl.arange(0, WIDE)
        inside, at = column < width, m * width + column
        gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + at, mask=inside, other=0.0).to(tl.float32)
        sigmoid = 1.0 / (1.0 + tl.exp(-gate))
        act = gate * sigmoid
        dweight += dout * act * up
        dinner = dout * weight
        dgate = dinner * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
        tl.store(dgate_ptr + at, dgate.to(dgate_ptr.dtype.element_ty), mask=inside)
        tl.store(dup_ptr + at, (dinner * act).to(dup_ptr.dtype.element_ty), mask=inside)
    tl.store(dweight_ptr + m, tl.sum(dweight, 0).to(dweight_ptr.dtype.element_ty))


def _block(width: int) -> int:
    return min(WIDE, triton.next_power_of_2(width))


def _copied(x_ND: Tensor, token_M: Tensor) -> Tensor:
    x_ND, width = x_ND.contiguous(), x_ND.shape[1]
    out_MD = x_ND.new_empty(token_M.numel(), width)
    block = _block(width)
    _copy_kernel[(token_M.numel(), triton.cdiv(width, block))](x_ND, token_M, out_MD, width, WIDE=block)
    return out_MD


def _summed(y_MD: Tensor, place_NA: Tensor) -> Tensor:
    y_MD, width = y_MD.contiguous(), y_MD.shape[1]
    n_tokens, n_active = place_NA.shape
    out_ND = y_MD.new_empty(n_tokens, width)
    block = _block(width)
    grid = (n_tokens, triton.cdiv(width, block))
    _sum_kernel[grid](y_MD, place_NA, out_ND, width, N_ACTIVE=n_active, WIDE=block)
    return out_ND


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, token_M: Tensor, place_NA: Tensor) -> Tensor:
        ctx.save_for_backward(place_NA)
        return _copied(x_ND, token_M)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_MD: Tensor) -> tuple[Tensor, None, None]:
        (place_NA,) = ctx.saved_tensors
        return _summed(dx_MD, place_NA), None, None


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_MD: Tensor, token_M: Tensor, place_NA: Tensor) -> Tensor:
        ctx.save_for_backward(token_M)
        return _summed(y_MD, place_NA)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, None, None]:
        (token_M,) = ctx.saved_tensors
        return _copied(dy_ND, token_M), None, None


class _WeightedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_MF: Tensor, up_MF: Tensor, weights_M: Tensor) -> Tensor:
        gate_MF, up_MF, weights_M = gate_MF.contiguous(), up_MF.contiguous(), weights_M.contiguous()
        ctx.save_for_backward(gate_MF, up_MF, weights_M)
        (n_rows, width), out_MF = gate_MF.shape, torch.empty_like(gate_MF)
        block = _block(width)
        grid = (n_rows, triton.cdiv(width, block))
        _swiglu_kernel[grid](gate_MF, up_MF, weights_M, out_MF, width, WIDE=block)
        return out_MF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_MF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate_MF, up_MF, weights_M = ctx.saved_tensors
        grads = torch.empty_like(gate_MF), torch.empty_like(up_MF), torch.empty_like(weights_M)
        n_rows, width = gate_MF.shape
        _swiglu_backward_kernel[(n_rows,)](
            gate_MF, up_MF, weights_M, dout_MF.contiguous(), *grads, width, WIDE=_block(width)
        )
        return grads
