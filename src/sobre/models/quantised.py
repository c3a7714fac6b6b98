"""Weights in 8 or 4 bits, activations in bfloat16: a twin of a model for decoding, which reads all weights every step.

int8: one scale per output channel; int4: one scale per `GROUP` input weights of a channel, codes 0..15 around 8.
Rounding is to the nearest; nothing is calibrated. The products are torch's own CPU kernels, which widen the weights in
registers. What stays in bfloat16: embedding, norms, router, the memory's tables, and MLA's up-projection of latents,
which the absorbed form folds into queries and outputs.

Shapes: N tokens, D width, E experts, A active, F expert width, O output and I input width of a matrix, X groups.
"""

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sobre.errors import ConfigError
from sobre.kernels.moe import by_expert
from sobre.models.decoder import Decoder
from sobre.models.kept import refuse_kept
from sobre.models.layers import Linear
from sobre.models.moe import MoE

Bits = Literal["int8", "int4"]
GROUP = 32
"""Input weights that share a scale in int4."""
OUT_UNIT = 16
"""Output widths of int4 products are multiples of this."""


def quantise(weight_OI: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """Codes and scales as the kernels take them: int8 (O, I) and (O,), or packed int4 and (X, O, 2)."""
    wide_OI = weight_OI.detach().float()
    if bits == "int8":
        scale_O = (wide_OI.abs().amax(1) / 127).clamp_min(1e-12).bfloat16()
        return (wide_OI / scale_O.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale_O
    grouped_OXG = wide_OI.unflatten(1, (-1, GROUP))
    scale_OX = (grouped_OXG.abs().amax(2) / 7).clamp_min(1e-12).bfloat16()
    codes_OI = (grouped_OXG / scale_OX.float()[..., None]).round_().clamp_(-8, 7).add_(8).flatten(1).to(torch.int32)
    scale_XO = scale_OX.t().contiguous()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_OI, 2)
    return packed, torch.stack([scale_XO, torch.zeros_like(scale_XO)], -1)


def product(x_NI: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """x W^T with the weights of `quantise`."""
    if codes.dtype == torch.int8:
        return torch._weight_int8pack_mm(x_NI, codes, scales)
    out_NO: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x_NI, codes, GROUP, scales)
    return out_NO


class QuantisedLinear(nn.Module):
    """y = x W^T (+ b), with W in 8 or 4 bits."""

    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, bits: Bits) -> None:
        super().__init__()
        codes, scales = quantise(weight_OI, bits)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if bias_O is None else bias_O.detach().bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        y = product(x.reshape(-1, x.shape[-1]).contiguous(), self.codes, self.scales)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)


class QuantisedExperts:
    """A dispatch (models/moe.py) over experts in 8 or 4 bits; the weights that a layer hands it are not looked at."""

    def __init__(self, moe: MoE, bits: Bits) -> None:
        self.gate, self.up, self.down = (
            [quantise(weight, bits) for weight in stacked] for stacked in (moe.gate_EFD, moe.up_EFD, moe.down_EDF)
        )

    def __call__(
        self, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        return by_expert(x_ND, experts_NA, weights_NA, self._expert)

    def _expert(self, expert: int, x_MD: Tensor) -> Tensor:
        inner_MF = F.silu(product(x_MD, *self.gate[expert])) * product(x_MD, *self.up[expert])
        return product(inner_MF, *self.down[expert])


def quantised(model: Decoder, bits: Bits) -> Decoder:
    """A twin of the model with its matrices in `bits`, computing in bfloat16; the model stays as it is.

    Raises ConfigError for a model elsewhere than on a CPU, or with matrices that the kernels do not take.
    """
    refuse_kept(model, f"engine.weights={bits!r}")
    if model.embed.weight.device.type != "cpu":
        raise ConfigError(f"{bits} weights need a model on the CPU, not on {model.embed.weight.device}")
    _check_shapes(model, bits)
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    twin = copy.deepcopy(model, shared).computing_in(torch.bfloat16)  # no second copy of what is about to be rounded
    if twin.head is None:
        twin.head = QuantisedLinear(model.embed.weight, None, bits)
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
        if name == "embed.weight" and model.head is not None:
            continue
        if not is_kept and (n_in % GROUP or n_out % OUT_UNIT):
            raise ConfigError(
                f"int4 takes matrices whose inputs are a multiple of {GROUP} and outputs of {OUT_UNIT};"
                f" {name} has {n_in} and {n_out}; int8 takes any"
            )
