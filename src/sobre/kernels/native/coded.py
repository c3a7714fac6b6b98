"""Products with weights in 8 or 4 bits through `linear.c` and `experts.c`, on a CPU: of few rows in bytes, which rounds
the inputs too (`coded.in_bytes`); many rows go to the library's product, with the weights widened to bfloat16.

Shapes: N tokens, D width, E experts, A active, O output and I input width of a matrix.
"""

import torch.nn.functional as F
from torch import Tensor

from sobre.kernels import coded
from sobre.kernels.coded import Bits, Coded, in_nibbles
from sobre.kernels.native.build import call
from sobre.kernels.native.experts import run as run_experts
from sobre.kernels.native.linear import run as run_rows

MOST_ROWS = 16
"""The library is faster beyond, the widening included."""
FEW = 16
"""Copies for each expert, on average, beyond which inputs are not rounded."""


def pack(scales: Tensor, codes_OI: Tensor, bits: Bits) -> Coded:
    """As products.h reads them."""
    if bits == "int8":
        return Coded(codes_OI.contiguous(), scales, bits)
    return Coded(in_nibbles(codes_OI), scales, bits)


def linear(x_NI: Tensor, weight: Coded) -> Tensor:
    """The same function as `coded.linear`."""
    n, n_in, n_out = *x_NI.shape, len(weight.codes)
    if n > MOST_ROWS:
        weight_OI = x_NI.new_empty(n_out, n_in)
        call(f"widen_{weight.bits}", weight_OI, weight.codes, weight.scales, n_out, n_in)
        return F.linear(x_NI, weight_OI)
    y_NO = x_NI.new_empty(n, n_out)
    run_rows(f"few_rows_{weight.bits}", x_NI.contiguous(), weight.codes, weight.scales, None, y_NO, n, n_in, n_out)
    return y_NO


def experts(x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate: Coded, up: Coded, down: Coded) -> Tensor:
    """The same function as `coded.experts`."""
    n_experts, d_expert = gate.codes.shape[:2]
    if experts_NA.numel() > FEW * n_experts:
        return coded.experts(x_ND, experts_NA, weights_NA, gate, up, down, linear)
    parts = [part for each in (gate, up, down) for part in (each.codes, each.scales)]
    return run_experts(f"few_experts_{gate.bits}", x_ND, experts_NA, weights_NA, parts, n_experts, d_expert)
