"""Attention of new tokens to cached ones: decode, chunked prefill and verification are the same sum.

Shapes: R sequences, T new tokens each (padded on the right), S cached positions, H query heads, G key/value heads,
K query/key width, W value width.
"""

import torch
from torch import Tensor


def cached_attention(q_RTHK: Tensor, k_RSGK: Tensor, v_RSGW: Tensor, starts_R: Tensor, scale: float) -> Tensor:
    """Return out_RTHW: token t of sequence r attends to the positions 0..starts_R[r] + t.

    Query heads of one group are stacked into one product per (sequence, group), so that keys are read in place.
    """
    n_sequences, n_tokens, n_heads, width = q_RTHK.shape
    n_cached, n_groups = k_RSGK.shape[1:3]
    grouped = (n_sequences, n_tokens, n_groups, n_heads // n_groups, width)
    q_RGMK = q_RTHK.reshape(grouped).permute(0, 2, 1, 3, 4).reshape(n_sequences, n_groups, -1, width)
    k_RGKS, v_RGSW = k_RSGK.permute(0, 2, 3, 1), v_RSGW.permute(0, 2, 1, 3)
    scores_RGMS = torch.matmul(q_RGMK, k_RGKS).float().mul_(scale)
    last_RT = starts_R[:, None] + torch.arange(n_tokens, device=starts_R.device)
    hidden_RTS = torch.arange(n_cached, device=starts_R.device) > last_RT[..., None]
    scores_RGTHS = scores_RGMS.unflatten(2, (n_tokens, -1)).masked_fill_(hidden_RTS[:, None, :, None], -torch.inf)
    probs_RGMS = scores_RGTHS.softmax(-1).flatten(2, 3).to(v_RSGW.dtype)
    out_RGMW = torch.matmul(probs_RGMS, v_RGSW)
    out_RGTHW = out_RGMW.unflatten(2, (n_tokens, -1))
    return out_RGTHW.permute(0, 2, 1, 3, 4).flatten(2, 3)
