"""Products with weights in 8 or 4 bits through torch's own kernels, on a CPU.

Shapes: N tokens, D width, A active, O output and I input width of a matrix, X groups of inputs.
"""

import torch
from torch import Tensor

from sobre.kernels import coded
from sobre.kernels.coded import GROUP, Bits, Coded


def pack(scales: Tensor, codes_OI: Tensor, bits: Bits) -> Coded:
    """As torch's products take them."""
    if bits == "int8":
        return Coded(codes_OI, scales, bits)
    scale_XO = scales.t().contiguous()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_OI.int() + 8, 2)
    return Coded(packed, torch.stack([scale_XO, torch.zeros_like(scale_XO)], -1), bits)


def linear(x_NI: Tensor, weight: Coded) -> Tensor:
    """The same function as `coded.linear`."""
    if weight.bits == "int8":
        return torch._weight_int8pack_mm(x_NI.contiguous(), weight.codes, weight.scales)
    out_NO: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x_NI.contiguous(), weight.codes, GROUP, weight.scales)
    return out_NO


def experts(x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate: Coded, up: Coded, down: Coded) -> Tensor:
    """The same function as `coded.experts`."""
    return coded.experts(x_ND, experts_NA, weights_NA, gate, up, down, linear)
