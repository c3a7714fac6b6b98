"""The routed experts of one token through `experts.c`: float32 on a CPU.

Shapes: D width, E experts, A active, F expert width.
"""

from torch import Tensor

from sobre.kernels.native.build import call


def one_token(
    x_1D: Tensor, experts_1A: Tensor, weights_1A: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """`reference.moe_ffn` of a single token, forward only."""
    n_active, (d_expert, d_model) = experts_1A.shape[1], gate_EFD.shape[1:]
    inner_AF, y_1D = x_1D.new_empty(n_active, d_expert), x_1D.new_empty(1, d_model)
    stacked = (gate_EFD.contiguous(), up_EFD.contiguous(), down_EDF.contiguous())
    given = (x_1D.contiguous(), experts_1A.contiguous(), weights_1A.contiguous(), *stacked, inner_AF, y_1D)
    call("experts_of_one", *given, n_active, d_model, d_expert)
    return y_1D
