"""The routed experts of few tokens through `experts.c`, on a CPU.

Shapes: N tokens, D width, E experts, A active, F expert width.
"""

import torch
from torch import Tensor

from sobre.kernels.native.build import call


def few_tokens(
    x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """`reference.moe_ffn`, forward only."""
    n, n_active = experts_NA.shape
    n_experts, d_expert, d_model = gate_EFD.shape
    y_ND, inner_MF = x_ND.new_empty(n, d_model), x_ND.new_empty(n * n_active, d_expert)
    parts_MD = x_ND.new_empty(n * n_active, d_model, dtype=torch.float32)
    order = experts_NA.new_empty(n_experts + 1 + n * n_active)
    stacked = (gate_EFD.contiguous(), up_EFD.contiguous(), down_EDF.contiguous())
    given = (x_ND.contiguous(), experts_NA.contiguous(), weights_NA.float().contiguous(), *stacked)
    call("few_experts", *given, inner_MF, parts_MD, order, y_ND, n, n_active, n_experts, d_model, d_expert)
    return y_ND
