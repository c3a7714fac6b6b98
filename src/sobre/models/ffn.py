"""SwiGLU feed-forward (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

from torch import Tensor, nn

from sobre.kernels import select
from sobre.models.layers import Linear


class SwiGLU(nn.Module):
    def __init__(self, d_model: int, d_ff: int, bias: bool = False) -> None:
        super().__init__()
        self.gate = Linear(d_model, d_ff, bias)
        self.up = Linear(d_model, d_ff, bias)
        self.down = Linear(d_ff, d_model, bias)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.down(select.swiglu(self.gate(x_ND), self.up(x_ND)))
