"""RMSNorm, SwiGLU and the output head's softmax through `pointwise.c`, on a CPU.

Shapes: N rows, D width, V vocabulary; leading dimensions are free. U rows of an expert, F its width, X twice that.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sobre.kernels.native.build import call

ROWS = 64
"""As in pointwise.c: rows whose share of a weight's gradient is summed by itself."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same function as `reference.rms_norm`."""
    if not torch.is_grad_enabled():
        return _norm(x.contiguous(), weight, eps, None)
    return _RMSNorm.apply(x, weight, eps)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The same function as `reference.swiglu`."""
    return _SwiGLU.apply(gate, up) if torch.is_grad_enabled() else _gated(gate.contiguous(), up.contiguous())


def weighted_swiglu(gate_up_UX: Tensor, weights_U: Tensor) -> Tensor:
    """As `moe.weighted_swiglu`."""
    n, width = gate_up_UX.shape
    inner_UF = gate_up_UX.new_empty(n, width // 2)
    call("weighted_swiglu", gate_up_UX, weights_U, inner_UF, *inner_UF.shape)
    return inner_UF


def weighted_swiglu_back(dinner_UF: Tensor, gate_up_UX: Tensor, weights_U: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `moe.weighted_swiglu_back`."""
    made = (torch.empty_like(gate_up_UX), torch.empty_like(weights_U), torch.empty_like(dinner_UF))
    call("weighted_swiglu_back", dinner_UF, gate_up_UX, weights_U, *made, *dinner_UF.shape)
    return made


def logits_to_errors(logits_NV: Tensor, targets_N: Tensor, nll_N: Tensor) -> Tensor:
    """Overwrite the logits with softmax - onehot; fill nll_N."""
    n, v = logits_NV.shape
    if call("errors", logits_NV, targets_N.long().contiguous(), nll_N, n, v):
        raise MemoryError(f"a row of {v:,} logits found no memory for its copy")
    return logits_NV


def _norm(x: Tensor, weight: Tensor, eps: float, inverse_N: Tensor | None) -> Tensor:
    """The normed rows; fills what the gradient needs, where it is asked for."""
    y, d = torch.empty_like(x), x.shape[-1]
    call("rms_norm", x, weight.float(), y, inverse_N, x.numel() // d, d, float(eps))
    return y


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    y = torch.empty_like(gate)
    call("swiglu", gate, up, y, gate.numel())
    return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        inverse_N = x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)
        y = _norm(x, weight, eps, inverse_N)
        ctx.save_for_backward(x, weight, inverse_N)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse_N = ctx.saved_tensors
        n, d = inverse_N.numel(), x.shape[-1]
        dx, partial_BD = torch.empty_like(x), inverse_N.new_empty(-(-n // ROWS), d)
        call("rms_norm_back", dy.contiguous(), x, weight.float(), inverse_N, dx, partial_BD, n, d)
        return dx, partial_BD.sum(0).to(weight.dtype), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        call("swiglu_back", dy.contiguous(), gate, up, dgate, dup, gate.numel())
        return dgate, dup
