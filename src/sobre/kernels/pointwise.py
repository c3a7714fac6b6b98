"""RMSNorm, rotary embedding and SwiGLU with few passes over memory and one autograd node each.

On CPUs a pass over an activation costs a part of a matrix product, and torch's own `rms_norm` makes about seven.

Shapes: N rows, D width, H heads, R rotary width, R2 its half; in `rms_norm` the leading dimensions are free.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sobre.kernels import reference


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same function as `reference.rms_norm`."""
    if not torch.is_grad_enabled():  # half the overhead, which is what counts on a few rows
        same = x.dtype == weight.dtype
        return F.rms_norm(x, x.shape[-1:], weight, eps) if same else reference.rms_norm(x, weight, eps)
    return _RMSNorm.apply(x, weight, eps)


def rope(x_NHR: Tensor, cos_NR2: Tensor, sin_NR2: Tensor, interleaved: bool) -> Tensor:
    """The same function as `reference.rope`; cos and sin are constants."""
    if not torch.is_grad_enabled():
        return _rotate(x_NHR, cos_NR2, sin_NR2, interleaved)
    return _Rope.apply(x_NHR, cos_NR2, sin_NR2, interleaved)


def latent_heads(
    q_NHK: Tensor, kv_MHX: Tensor, k_rope_MR: Tensor, cos_NR2: Tensor, sin_NR2: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same function as `reference.latent_heads`."""
    return reference.latent_heads(q_NHK, kv_MHX, k_rope_MR, cos_NR2, sin_NR2, interleaved, rotate=rope)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The same function as `reference.swiglu`, with one more rounding in bfloat16.

    Of the three that torch would keep, silu(gate) is made again: a cheap pass for a quarter of a layer's memory.
    """
    return _SwiGLU.apply(gate, up) if torch.is_grad_enabled() else F.silu(gate).mul_(up)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide_x = _widen(x)
        norm = torch.linalg.vector_norm(wide_x, 2, -1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (wide_x * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        wide_dy, wide_weight = _widen(dy), _widen(weight)
        unit = _widen(x) * inverse
        scaled = wide_dy * wide_weight  # d(unit); dx = (d(unit) - unit * mean(d(unit) * unit)) / rms
        product = (wide_dy * unit).flatten(0, -2)
        mean = torch.mv(product, wide_weight / x.shape[-1]).view_as(inverse)
        dx = scaled.addcmul_(unit, mean, value=-1).mul_(inverse)
        return dx.to(x.dtype), product.sum(0).to(weight.dtype), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(dy * up, gate), F.silu(gate).mul_(dy)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NHR: Tensor, cos_NR2: Tensor, sin_NR2: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos_NR2, sin_NR2)
        ctx.interleaved = interleaved
        return _rotate(x_NHR, cos_NR2, sin_NR2, interleaved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NHR: Tensor) -> tuple[Tensor, None, None, None]:
        cos_NR2, sin_NR2 = ctx.saved_tensors
        return _rotate(dy_NHR, cos_NR2, -sin_NR2, ctx.interleaved), None, None, None


def _rotate(x_NHR: Tensor, cos_NR2: Tensor, sin_NR2: Tensor, interleaved: bool) -> Tensor:
    wide = torch.promote_types(x_NHR.dtype, torch.float32)
    if interleaved:  # one complex product
        turn_N1 = torch.complex(cos_NR2.to(wide), sin_NR2.to(wide)).unsqueeze(1)
        pairs = torch.view_as_complex(x_NHR.to(wide).contiguous().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn_N1).flatten(-2).to(x_NHR.dtype)
    cos_N1R, sin_N1R = (torch.cat([half, half], -1).to(wide).unsqueeze(1) for half in (cos_NR2, sin_NR2))
    wide_NHR = x_NHR.to(wide)
    a, b = wide_NHR.chunk(2, dim=-1)
    return torch.cat([-b, a], -1).mul_(sin_N1R).addcmul_(wide_NHR, cos_N1R).to(x_NHR.dtype)


def _widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
