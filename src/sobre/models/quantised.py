"""Weights in 8 or 4 bits, activations in bfloat16: a twin of a model for decoding, which reads all weights every step.

Rounding is to the nearest; nothing is calibrated (kernels/coded.py). The output head has 8 bits in either form. What
stays in bfloat16: embedding, norms, router, the memory's tables, and MLA's up-projection of latents, which the absorbed
form folds into queries and outputs.

Shapes: N tokens, D width, E experts, A active, F expert width, O output and I input width of a matrix.
"""

import copy

import torch
from torch import Tensor, nn

from sobre.errors import ConfigError
from sobre.kernels import select
from sobre.kernels.coded import GROUP, Bits, Coded, rounded, stacked
from sobre.kernels.native.whole import Matrix
from sobre.models.decoder import Decoder
from sobre.models.kept import refuse_kept
from sobre.models.layers import Linear
from sobre.models.moe import MoE, Packed

HEAD: Bits = "int8"
"""The output head's in either form: of what a mixture of 7.2M lost in 4 bits, half was lost in the head."""
OUT_UNIT = 16
"""Output widths of int4 products are multiples of this."""


def quantise(weight_OI: Tensor, bits: Bits) -> Coded:
    """The matrix in `bits`, as the chosen kernel reads it."""
    codes_OI, scales = rounded(weight_OI, bits)
    return select.coded_pack(scales, codes_OI, bits)


def matrix(coded: Coded) -> Matrix | None:
    """The same for a whole step in C, where the chosen kernel reads what that does."""
    return Matrix(coded.codes, coded.scales, f"_{coded.bits}") if select.packs_for_c(coded.scales) else None


class QuantisedLinear(nn.Module):
    """y = x W^T (+ b), with W in 8 or 4 bits."""

    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, bits: Bits) -> None:
        super().__init__()
        self.bits = bits
        codes, scales, _ = quantise(weight_OI, bits)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if bias_O is None else bias_O.detach().bfloat16())

    def matrix(self, dtype: torch.dtype) -> Matrix | None:
        """As `Linear.matrix`."""
        return matrix(Coded(self.codes, self.scales, self.bits)) if self.bias is None else None

    def forward(self, x: Tensor) -> Tensor:
        y = select.coded_linear(x.reshape(-1, x.shape[-1]), Coded(self.codes, self.scales, self.bits))
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)


class QuantisedExperts(Packed):
    """A dispatch (models/moe.py) over experts in 8 or 4 bits; the weights that a layer hands it are not looked at."""

    def __init__(self, moe: MoE, bits: Bits) -> None:
        self.gate, self.up, self.down = (
            stacked([quantise(weight_OI, bits) for weight_OI in weight_EOI])
            for weight_EOI in (moe.gate_EFD, moe.up_EFD, moe.down_EDF)
        )

    def __call__(
        self, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        return select.coded_experts(x_ND, experts_NA, weights_NA, self.gate, self.up, self.down)

    def matrices(self) -> tuple[Matrix | None, ...]:
        return matrix(self.gate), matrix(self.up), matrix(self.down)


def quantised(model: Decoder, bits: Bits) -> Decoder:
    """A twin of the model with its matrices in `bits`, computing in bfloat16; the model stays as it is.

    Raises ConfigError for a model with matrices that the kernels do not take.
    """
    refuse_kept(model, f"engine.weights={bits!r}")
    _check_shapes(model, bits)
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    twin = copy.deepcopy(model, shared).computing_in(torch.bfloat16)  # no second copy of what is about to be rounded
    twin.head = QuantisedLinear(model.head_VD, None, HEAD)
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear) and name != "kv_up":
                setattr(module, name, QuantisedLinear(child.weight, child.bias, bits))
        if isinstance(module, MoE):
            module.dispatch = QuantisedExperts(module, bits)
            for name in ("gate_EFD", "up_EFD", "down_EDF"):
                setattr(module, name, nn.Parameter(torch.empty(0), requires_grad=False))
    for parameter_name, parameter in twin.named_parameters():
        kept = parameter.ndim < 2 or ".router." in parameter_name
        parameter.data = parameter.data.clone() if kept else parameter.data.bfloat16()
    return twin


def _check_shapes(model: Decoder, bits: Bits) -> None:
    if bits == "int8":
        return
    for name, parameter in model.named_parameters():
        is_kept = parameter.ndim < 2 or ".router." in name or "kv_up" in name or name.endswith(("table_MW", "conv_KD"))
        n_out, n_in = parameter.shape[-2:] if parameter.ndim > 1 else (0, 0)
        if name in ("embed.weight", "head.weight"):
            continue
        if not is_kept and (n_in % GROUP or n_out % OUT_UNIT):
            raise ConfigError(
                f"int4 takes matrices whose inputs are a multiple of {GROUP} and outputs of {OUT_UNIT};"
                f" {name} has {n_in} and {n_out}; int8 takes any"
            )
