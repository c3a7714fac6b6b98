"""Low-rank adapters (LoRA, arXiv 2106.09685): W x + scale * up (down x), with W frozen and `down`, `up` of rank R.

`up` begins as zero, so an adapted model begins as the model itself. The scale is alpha / R, or alpha / sqrt(R) when it
is stabilised (arXiv 2312.03732), so that the size of the update does not fall as the rank grows. Experts have a pair
each for gate, up and down, stacked like their weights. There is no dropout: a resumed run would have to repeat it.

The adapters are kept in float32 whatever the weights are in, and cast at use, like every weight.

Shapes: N tokens, I input width, O output width, R rank, E experts, D width, F expert width, M rows sorted by expert.
"""

import torch
from torch import Tensor, nn

from sobre.kernels import select


class LoRA(nn.Module):
    """The adapter of one matrix."""

    def __init__(self, n_in: int, n_out: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down_RI = nn.Parameter(torch.empty(rank, n_in))
        self.up_OR = nn.Parameter(torch.zeros(n_out, rank))

    def forward(self, x_NI: Tensor) -> Tensor:
        inner_NR = select.linear(x_NI, self.down_RI.to(x_NI.dtype), None) * self.scale
        return select.linear(inner_NR, self.up_OR.to(x_NI.dtype), None)

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """What the adapter adds to the matrix, (O, I)."""
        return self.scale * self.up_OR.to(dtype) @ self.down_RI.to(dtype)


class StackedLoRA(nn.Module):
    """The adapters of one matrix of every expert."""

    def __init__(self, n_experts: int, n_in: int, n_out: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down_ERI = nn.Parameter(torch.empty(n_experts, rank, n_in))
        self.up_EOR = nn.Parameter(torch.zeros(n_experts, n_out, rank))

    def forward(self, x_MI: Tensor, counts_E: Tensor) -> Tensor:
        """Rows sorted by expert, counts_E of each."""
        inner_MR = select.grouped_linear(x_MI, self.down_ERI.to(x_MI.dtype), counts_E) * self.scale
        return select.grouped_linear(inner_MR, self.up_EOR.to(x_MI.dtype), counts_E)

    def delta(self) -> Tensor:
        """What the adapters add to the matrices, (E, O, I)."""
        return self.scale * self.up_EOR @ self.down_ERI


class ExpertsLoRA(nn.Module):
    """The adapters of a routing layer's experts; a matrix may go without."""

    def __init__(
        self, gate: StackedLoRA | None = None, up: StackedLoRA | None = None, down: StackedLoRA | None = None
    ) -> None:
        super().__init__()
        self.gate, self.up, self.down = gate, up, down

    def forward(
        self, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        """The adapted experts of every token, weighted and summed: `reference.moe_ffn` with three more terms."""
        order_M = experts_NA.flatten().argsort(stable=True)
        counts_E = experts_NA.flatten().bincount(minlength=gate_EFD.shape[0])
        token_M = order_M // experts_NA.shape[1]
        x_MD = x_ND[token_M]
        gate_MF = _adapted(x_MD, gate_EFD, counts_E, self.gate)
        inner_MF = select.swiglu(gate_MF, _adapted(x_MD, up_EFD, counts_E, self.up))
        inner_MF = inner_MF * weights_NA.flatten()[order_M, None].to(x_ND.dtype)
        y_MD = _adapted(inner_MF, down_EDF, counts_E, self.down)
        return torch.zeros_like(x_ND).index_add(0, token_M, y_MD)


def _adapted(x_MI: Tensor, weight_EOI: Tensor, counts_E: Tensor, lora: StackedLoRA | None) -> Tensor:
    y_MO = select.grouped_linear(x_MI, weight_EOI, counts_E)
    return y_MO if lora is None else y_MO + lora(x_MI, counts_E)
