"""Attention of new tokens to cached ones: decode, chunked prefill and verification are the same sum.

Shapes: R sequences, T new tokens each (padded on the right), S cached positions, H query heads, G key/value heads,
J = H // G query heads per key head, K query/key width, W value width.
"""

import torch
from torch import Tensor


def cached_attention(q_RTHK: Tensor, k_RSGK: Tensor, v_RSGW: Tensor, later_RTS: Tensor, scale: float) -> Tensor:
    """Return out_RTHW; `later_RTS` is minus infinity where a token must not look, else 0.

    The query heads of one key head are extra rows of one product, whose keys and values are read where they lie.
    """
    n_tokens, n_heads = q_RTHK.shape[1:3]
    n_groups = k_RSGK.shape[2]
    n_rows = n_heads // n_groups
    bias_RUS = later_RTS.to(q_RTHK.dtype)
    bias_RUS = bias_RUS if n_tokens == 1 else bias_RUS.repeat_interleave(n_rows, 1)
    if q_RTHK.shape[0] == 1:
        return _one_sequence(q_RTHK[0], k_RSGK[0], v_RSGW[0], bias_RUS, scale).unsqueeze(0)
    outs_RTJW = []
    for group, q_RTJK in enumerate(q_RTHK.split(n_rows, 2)):
        scores_RUS = torch.baddbmm(bias_RUS, q_RTJK.flatten(1, 2), k_RSGK[:, :, group].mT, alpha=scale)
        out_RUW = torch.bmm(scores_RUS.softmax(-1), v_RSGW[:, :, group])
        outs_RTJW.append(out_RUW.unflatten(1, (n_tokens, n_rows)))
    return outs_RTJW[0] if n_groups == 1 else torch.cat(outs_RTJW, 2)


def _one_sequence(q_THK: Tensor, k_SGK: Tensor, v_SGW: Tensor, bias_1US: Tensor, scale: float) -> Tensor:
    """All key heads in one product: with a single sequence they are a batch that lies in place."""
    q_TGJK = q_THK.unflatten(1, (k_SGK.shape[1], -1))
    scores_GUS = torch.baddbmm(bias_1US, q_TGJK.transpose(0, 1).flatten(1, 2), k_SGK.permute(1, 2, 0), alpha=scale)
    out_GUW = torch.bmm(scores_GUS.softmax(-1), v_SGW.transpose(0, 1))
    return out_GUW.unflatten(1, (len(q_THK), -1)).transpose(0, 1).flatten(1, 2)
