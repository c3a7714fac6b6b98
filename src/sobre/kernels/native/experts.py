"""The routed experts of few tokens through `experts.c`, on a CPU.

Shapes: N tokens, D width, E experts, A active, F expert width, M copies (N * A).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sobre.kernels.native.build import call


def few_tokens(
    x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """`reference.moe_ffn`, forward only."""
    parts = [part for weight in (gate_EFD, up_EFD, down_EDF) for part in (weight.contiguous(), None)]
    return run("few_experts", x_ND, experts_NA, weights_NA, parts, *gate_EFD.shape[:2])


def run(
    name: str,
    x_ND: Tensor,
    experts_NA: Tensor,
    weights_NA: Tensor,
    parts: Sequence[Tensor | None],
    n_experts: int,
    d_expert: int,
) -> Tensor:
    """One of the page's functions, with matrices and scales of gate, up and down."""
    (n, n_active), d_model = experts_NA.shape, x_ND.shape[1]
    y_ND, inner_MF = x_ND.new_empty(n, d_model), x_ND.new_empty(n * n_active, d_expert)
    sums_MD = x_ND.new_empty(n * n_active, d_model, dtype=torch.float32)
    order = experts_NA.new_empty(2 * n_experts + 1 + n * n_active)
    given = (x_ND.contiguous(), experts_NA.contiguous(), weights_NA.float().contiguous(), *parts)
    if call(name, *given, inner_MF, sums_MD, order, y_ND, n, n_active, n_experts, d_model, d_expert):
        raise MemoryError(f"the experts of {n:,} tokens found no memory for their inputs in bytes")
    return y_ND
