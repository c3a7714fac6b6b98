"""Attention of the last tokens of a sequence to all of it up to each: what a piece of a divided sequence computes.

Shapes: T queries, the last of S positions, H query heads, G key/value heads, K query/key width, W value width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from sobre.kernels.attention import BLOCK
from sobre.kernels.cached import cached_attention
from sobre.kernels.sdpa import BACKENDS


def block(q_THK: Tensor, k_SGK: Tensor, v_SGW: Tensor, scale: float) -> Tensor:
    """Queries in blocks that meet the keys so far and no others."""
    outs, first = [], len(k_SGK) - len(q_THK)
    for begin in range(0, len(q_THK), BLOCK):
        q = q_THK[begin : begin + BLOCK]
        n_keys = first + begin + len(q)
        later_TS = torch.full((len(q), n_keys), -torch.inf, device=q.device).triu_(n_keys - len(q) + 1)
        outs.append(cached_attention(q[None], k_SGK[None, :n_keys], v_SGW[None, :n_keys], later_TS[None], scale)[0])
    return torch.cat(outs)


def fused(q_THK: Tensor, k_SGK: Tensor, v_SGW: Tensor, scale: float) -> Tensor:
    """torch's fused attention, whose causal mask ends in the lower right corner."""
    from torch.nn.attention.bias import causal_lower_right  # it imports torch's compiler, which takes seconds

    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_THK, k_SGK, v_SGW))
    mask = causal_lower_right(len(q_THK), len(k_SGK))
    with sdpa_kernel(BACKENDS, set_priority=True):
        out_1HTW = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    return out_1HTW[0].transpose(0, 1)
