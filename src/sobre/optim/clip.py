"""Clip the norm of the whole gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def clip_grad_norm(grads: Sequence[Tensor], max_norm: float, *, norm: Tensor | None = None) -> Tensor:
    """Scale `grads` in place so that their joint norm is at most `max_norm`; return the norm they had.

    `norm`, if given, is that norm, of which `grads` hold a part (the rest is in other processes). Nothing is asked of
    the device. With a norm that is not finite the gradients are worth nothing: the caller refuses the step.
    """
    if not grads:
        return torch.zeros(())
    if norm is None:
        norm = torch.stack(torch._foreach_norm(list(grads))).norm()
    torch._foreach_mul_(list(grads), (max_norm / norm).clamp(max=1.0).to(grads[0].dtype))
    return norm
