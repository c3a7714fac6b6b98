"""Causal attention of ragged sequences through torch's fused attention: for accelerators.

Sequences are put into groups of like length and each group is padded on the right: a causal mask keeps padding from
every real token. Latent attention has other widths for keys and values (192 and 128 in V3): cuDNN's attention and the
memory-efficient one take them as they are, flash attention does not, so they are tried in this order; none of them asks
for V to be padded.

Shapes: N tokens, H query heads, G key/value heads, K query/key width, W value width. Of one group: R sequences, T
positions.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sobre.kernels.attention import LENGTH_UNIT, group_lengths
from sobre.runtime.device import carried

BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""In order of preference; torch leaves out those that cannot take the shapes, the dtype or the device."""


class Padded(NamedTuple):
    """Groups of like length, and the way back."""

    tokens_RT: tuple[Tensor, ...]
    """Of each group: the token at each position; padding repeats the sequence's last one."""
    place_N: Tensor
    """Of each token: its row among the padded rows of all groups."""


def causal_attention(q_NHK: Tensor, k_NGK: Tensor, v_NGW: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """The same function as `reference.causal_attention`."""
    grouped = q_NHK.shape[1] != k_NGK.shape[1]
    if len(set(lengths)) == 1:
        shape = (len(lengths), lengths[0])
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in (q_NHK, k_NGK, v_NGW))
        return _fused(q, k, v, scale, grouped).flatten(0, 1)
    padded = _padded(tuple(lengths), q_NHK.shape[1], q_NHK.device)
    outs = []
    for tokens_RT in padded.tokens_RT:
        q, k, v = (x[tokens_RT].transpose(1, 2) for x in (q_NHK, k_NGK, v_NGW))
        outs.append(_fused(q, k, v, scale, grouped).flatten(0, 1))
    return torch.cat(outs).index_select(0, padded.place_N)


def _fused(q_RHTK: Tensor, k_RGTK: Tensor, v_RGTW: Tensor, scale: float, grouped: bool) -> Tensor:
    """out_RTHW."""
    with sdpa_kernel(BACKENDS, set_priority=True):
        out_RHTW = F.scaled_dot_product_attention(
            q_RHTK, k_RGTK, v_RGTW, is_causal=True, scale=scale, enable_gqa=grouped
        )
    return out_RHTW.transpose(1, 2)


@lru_cache(maxsize=8)
def _padded(lengths: tuple[int, ...], n_heads: int, device: torch.device) -> Padded:
    """The same for all layers of a step, and so made once, on the host."""
    firsts = torch.tensor((0, *lengths)).cumsum(0)
    tokens, places, n_rows = list[Tensor](), torch.empty(sum(lengths), dtype=torch.long), 0
    for members in group_lengths(lengths, n_heads):
        lengths_R1 = torch.tensor([lengths[index] for index in members]).unsqueeze(1)
        longest = -(-int(lengths_R1.max()) // LENGTH_UNIT) * LENGTH_UNIT
        offset_T = torch.arange(longest)
        token_RT = firsts[members].unsqueeze(1) + torch.minimum(offset_T, lengths_R1 - 1)
        real_RT = offset_T < lengths_R1
        row_RT = n_rows + torch.arange(token_RT.numel()).view_as(token_RT)
        places[token_RT[real_RT]] = row_RT[real_RT]
        tokens.append(carried(token_RT, device))
        n_rows += token_RT.numel()
    return Padded(tuple(tokens), carried(places, device))
