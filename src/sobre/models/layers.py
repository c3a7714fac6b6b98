"""The two smallest modules: a linear map and RMSNorm, computed in the dtype of their input.

Weights are kept in their own dtype (float32 masters in training) and cast at use, so that one module serves bf16
compute over float32 weights and plain float32 alike; autograd brings the gradient back to the master's dtype. A weight
may stay in FP8 blocks (models/kept.py); its factors then lie beside it.
"""

import torch
from torch import Tensor, nn

from sobre.kernels import select
from sobre.kernels.fp8_linear import fp8_linear
from sobre.kernels.kept import Blocks, multiplied_out
from sobre.kernels.native.whole import Matrix
from sobre.models.lora import LoRA
from sobre.train.config import Precision


class Linear(nn.Module):
    """y = x W^T (+ b), with W stored (out, in); with an adapter, the low-rank product is added."""

    weight_factors: Tensor | None
    precision: Precision = "auto"
    """What training multiplies in (models/low_precision.py); auto is the dtype of the input."""

    def __init__(self, n_in: int, n_out: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.register_buffer("weight_factors", None)
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None
        self.lora: LoRA | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x, None if self.bias is None else self.bias.to(x.dtype))
        return y if self.lora is None else y + self.lora(x)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T (+ bias), as W lies or as training multiplies."""
        if self.precision != "auto" and self.training:
            y = fp8_linear(x, self.weight, power_of_two=self.precision == "fp8-power-of-two")
        elif self.weight_factors is not None:
            y = select.kept_linear(x, Blocks(self.weight, self.weight_factors))
        else:
            return select.linear(x, self.weight.to(x.dtype), bias)
        return y if bias is None else y + bias

    def matrix(self, dtype: torch.dtype) -> Matrix | None:
        """W for a whole step in C (kernels/native/whole.py), where this is nothing but a product with it as it lies."""
        adds = self.bias is not None or self.lora is not None or self.weight_factors is not None
        if type(self) is not Linear or adds or (self.training and self.precision != "auto"):
            return None
        return Matrix(self.weight) if self.weight.dtype == dtype and self.weight.is_contiguous() else None

    def whole_weight(self, dtype: torch.dtype) -> Tensor:
        """W and what the adapter adds to it, as one matrix."""
        if self.weight_factors is not None:
            return multiplied_out(Blocks(self.weight, self.weight_factors), dtype)
        weight = self.weight.to(dtype)
        return weight if self.lora is None else weight + self.lora.delta(dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean square in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return select.rms_norm(x, self.weight, self.eps)
