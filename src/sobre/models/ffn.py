"""SwiGLU feed-forward (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

import torch
from torch import Tensor, nn

from sobre.kernels import select
from sobre.kernels.native.whole import FEW_ROWS, Gated, Matrix, of_one_form
from sobre.models.layers import Linear


class SwiGLU(nn.Module):
    def __init__(self, d_model: int, d_ff: int, bias: bool = False) -> None:
        super().__init__()
        self.gate = Linear(d_model, d_ff, bias)
        self.up = Linear(d_model, d_ff, bias)
        self.down = Linear(d_ff, d_model, bias)

    def matrices(self, dtype: torch.dtype) -> tuple[Matrix | None, ...]:
        """Gate, up and down, as `Linear.matrix` gives them."""
        return self.gate.matrix(dtype), self.up.matrix(dtype), self.down.matrix(dtype)

    def whole(self, dtype: torch.dtype) -> Gated | None:
        """The layer as one call takes it; None where it is more than its matrices."""
        matrices = of_one_form(self.matrices(dtype))
        return None if matrices is None else Gated(*matrices)

    def forward(self, x_ND: Tensor) -> Tensor:
        if len(x_ND) <= FEW_ROWS and not torch.is_grad_enabled() and (gated := select.whole("gated", x_ND)):
            layer = self.whole(x_ND.dtype)
            if layer is not None:
                y_ND: Tensor = gated(x_ND, layer)
                return y_ND
        return self.down(select.swiglu(self.gate(x_ND), self.up(x_ND)))
