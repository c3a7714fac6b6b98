"""Cache entries in 8 bits: each vector of an entry (a latent, a rotary key, a head's key or value) with its own scale.

x = scale * code with code in -127..127 and scale = max|x| / 127 (float32), to the nearest: an error of at most half a
scale. A vector of zeros has scale 0.

Shapes: N tokens, C entry width, P vectors of an entry; `parts` says how many of which width follow each other.
"""

import torch
from torch import Tensor

Parts = tuple[tuple[int, int], ...]


def to_int8(entries_NC: Tensor, parts: Parts) -> tuple[Tensor, Tensor]:
    """codes_NC (int8) and scales_NP (float32)."""
    codes, scales = [], []
    for (n, width), part in zip(parts, _split(entries_NC.float(), parts), strict=True):
        vectors = part.unflatten(-1, (n, width))
        scale = vectors.abs().amax(-1, keepdim=True) / 127
        codes.append((vectors / scale.clamp_min(1e-30)).round_().to(torch.int8).flatten(-2))
        scales.append(scale.squeeze(-1))
    return torch.cat(codes, -1), torch.cat(scales, -1)


def from_int8(codes_NC: Tensor, scales_NP: Tensor, parts: Parts, dtype: torch.dtype) -> Tensor:
    """entries_NC that the codes stand for; any shape may stand in the place of N."""
    widened, begin = [], 0
    for (n, width), part in zip(parts, _split(codes_NC, parts), strict=True):
        scale = scales_NP[..., begin : begin + n].unsqueeze(-1)
        widened.append((part.unflatten(-1, (n, width)) * scale).to(dtype).flatten(-2))
        begin += n
    return widened[0] if len(widened) == 1 else torch.cat(widened, -1)


def _split(x_NC: Tensor, parts: Parts) -> tuple[Tensor, ...]:
    return x_NC.split([n * width for n, width in parts], -1)
