"""Weights in 8 or 4 bits, rounded to the nearest, and what products with them are: the weights multiplied out first.

int8: one scale per output channel; int4: one per `GROUP` input weights of a channel, codes -8..7, chosen among a few by
the squares that are lost. A kernel packs the codes as it reads them: what lies in a `Coded` is its own business. Here
they lie as they are, a byte each.

Shapes: N tokens, D width, E experts, A active, F expert width, O output and I input width of a matrix, X groups of
inputs, G inputs and H bytes of a group, M rows of one expert.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sobre.kernels.moe import by_expert

Bits = Literal["int8", "int4"]
GROUP = 32
"""Input weights that share a scale in int4."""
STEPS = (6.5, 7.0, 7.25, 7.5, 7.75, 8.0, 8.25, 8.5, 9.0)
"""Steps of int4 that the largest weight of a group is tried to be away from 0, on the side that has eight of them; the
scale that loses the least (in squares) is taken."""
BYTES_BLOCK = 128
"""Inputs among which those that share a scale are found."""


class Coded(NamedTuple):
    """A matrix, or the stacked ones of all experts, packed by a kernel."""

    codes: Tensor
    scales: Tensor
    bits: Bits

    def of(self, expert: int) -> "Coded":
        return Coded(self.codes[expert], self.scales[expert], self.bits)


def stacked(each: Sequence[Coded]) -> Coded:
    """The experts' matrices in one."""
    codes, scales = (torch.stack([getattr(coded, part) for coded in each]) for part in ("codes", "scales"))
    return Coded(codes, scales, each[0].bits)


def rounded(weight_OI: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """codes_OI (int8) and scales in bfloat16: (O,) in int8, (O, X) in int4."""
    wide_OI = weight_OI.detach().float()
    if bits == "int8":
        scale_O = (wide_OI.abs().amax(1) / 127).clamp_min(1e-12).bfloat16()
        return (wide_OI / scale_O.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale_O
    grouped_OXG = wide_OI.unflatten(1, (-1, GROUP))
    largest_OX1 = grouped_OXG.gather(2, grouped_OXG.abs().argmax(2, keepdim=True))
    codes_OXG, scale_OX1 = torch.zeros_like(grouped_OXG), torch.zeros_like(largest_OX1)
    least_OX1 = torch.full_like(largest_OX1, torch.inf)
    for steps in STEPS:
        tried_OX1 = (largest_OX1 / -steps).bfloat16().float()
        tried_OX1 = torch.where(tried_OX1.abs() < 1e-12, 1e-12, tried_OX1)
        tried_OXG = (grouped_OXG / tried_OX1).round_().clamp_(-8, 7)
        lost_OX1 = (tried_OXG * tried_OX1).sub_(grouped_OXG).square_().sum(2, keepdim=True)
        better_OX1 = lost_OX1 < least_OX1
        codes_OXG = torch.where(better_OX1, tried_OXG, codes_OXG)
        scale_OX1, least_OX1 = (
            torch.where(better_OX1, new, old) for new, old in ((tried_OX1, scale_OX1), (lost_OX1, least_OX1))
        )
    return codes_OXG.flatten(1).to(torch.int8), scale_OX1.squeeze(2).bfloat16()


def in_bytes(x_NI: Tensor, bits: Bits) -> Tensor:
    """x_NI as products of bytes take it (native/codes.h), in its own dtype widened to float32: eight numbers, which lie
    in a block of `BYTES_BLOCK` as the weights' codes do, share a scale, largest / 127."""
    padded_NI = F.pad(x_NI.float(), (0, -x_NI.shape[1] % BYTES_BLOCK))
    sizes, halves = ((2, 16, 4), 2) if bits == "int8" else ((4, 2, 4, 4), 3)
    parts = padded_NI.unflatten(1, (-1, *sizes))
    largest = parts.abs().amax((halves, -1), keepdim=True).clamp_min(1e-30)
    return ((parts * (127 / largest)).round_() * (largest / 127)).flatten(1)[:, : x_NI.shape[1]]


def in_nibbles(codes_OI: Tensor) -> Tensor:
    """codes of int4 in half as many bytes (uint8), plus 8 each: of the 32 inputs that share a scale the first 16 lie in
    the low halves of 16 bytes, the others in the high ones."""
    low_OXH, high_OXH = (codes_OI + 8).to(torch.uint8).unflatten(1, (-1, 2, GROUP // 2)).unbind(2)
    return (low_OXH | high_OXH << 4).flatten(1)


def from_nibbles(bytes_: Tensor) -> Tensor:
    """The codes (int8) that `in_nibbles` made these bytes of; any shape may stand before the last dimension."""
    bytes_XH = bytes_.unflatten(-1, (-1, GROUP // 2))
    return torch.stack([bytes_XH & 15, bytes_XH >> 4], -2).flatten(-3).to(torch.int8) - 8


def multiplied_out(codes: Tensor, scales: Tensor, bits: Bits, dtype: torch.dtype) -> Tensor:
    """The weights that codes (.., O, I) stand for, rounded to `dtype`."""
    if bits == "int8":
        return (codes * scales.unsqueeze(-1).float()).to(dtype)
    return (codes.unflatten(-1, (-1, GROUP)) * scales.unsqueeze(-1).float()).flatten(-2).to(dtype)


def pack(scales: Tensor, codes_OI: Tensor, bits: Bits) -> Coded:
    """As they are."""
    return Coded(codes_OI, scales, bits)


def linear(x_NI: Tensor, weight: Coded) -> Tensor:
    """x W^T with the weights that the codes stand for."""
    return F.linear(x_NI, multiplied_out(*weight, x_NI.dtype))


def experts(
    x_ND: Tensor,
    experts_NA: Tensor,
    weights_NA: Tensor,
    gate: Coded,
    up: Coded,
    down: Coded,
    linear: Callable[[Tensor, Coded], Tensor] = linear,
) -> Tensor:
    """The routed experts of every token, weighted and summed, expert by expert; `linear` is a page's own product."""

    def expert(e: int, x_MD: Tensor) -> Tensor:
        inner_MF = F.silu(linear(x_MD, gate.of(e))) * linear(x_MD, up.of(e))
        return linear(inner_MF, down.of(e))

    return by_expert(x_ND, experts_NA, weights_NA, expert)
