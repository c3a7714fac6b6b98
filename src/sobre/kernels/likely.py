"""What top_k, top_p and min_p leave of probabilities, by a shortlist of the most probable tokens.

Shapes: R rows, V vocabulary, F filtered rows, J tokens of the shortlist.
"""

import torch
from torch import Tensor

SHORTLIST = 256
"""Most probable tokens looked at first for top_p; rows that need more are sorted whole."""


def keep_likely(
    probs_RV: Tensor, rows_F: Tensor, top_k_F: Tensor, top_p_F: Tensor, min_p_F: Tensor, most_k: int
) -> None:
    """The same function as `reference.keep_likely`."""
    probs_FV = probs_RV[rows_F]
    shortlist = min(max(SHORTLIST, most_k), probs_FV.shape[1])
    last_F1, open_F = last_kept(probs_FV, top_k_F, top_p_F, shortlist)
    if open_F.any():
        last_F1[open_F] = last_kept(probs_FV[open_F], top_k_F[open_F], top_p_F[open_F], probs_FV.shape[1])[0]
    last_F1 = torch.maximum(last_F1, probs_FV.amax(-1, keepdim=True) * min_p_F.unsqueeze(1))
    probs_RV[rows_F] = probs_FV.masked_fill_(probs_FV < last_F1, 0.0)


def last_kept(probs_FV: Tensor, top_k_F: Tensor, top_p_F: Tensor, shortlist: int) -> tuple[Tensor, Tensor]:
    """Probability of the last token kept, and the rows whose last token lies beyond the shortlist."""
    ranked_FJ = probs_FV.topk(shortlist, sorted=True).values
    sums_FJ = ranked_FJ.double().cumsum(-1)
    limit_F1 = top_k_F.clamp(max=probs_FV.shape[1]).unsqueeze(1)
    total_F1 = sums_FJ.gather(1, limit_F1.clamp(max=shortlist) - 1)
    total_F1 = torch.where(limit_F1 < probs_FV.shape[1], total_F1, probs_FV.sum(-1, keepdim=True, dtype=torch.float64))
    enough_F1 = torch.searchsorted(sums_FJ, top_p_F.unsqueeze(1) * total_F1) + 1
    n_kept_F1 = torch.minimum(enough_F1, limit_F1)
    open_F = (n_kept_F1 > shortlist).squeeze(1)
    return ranked_FJ.gather(1, n_kept_F1.clamp(max=shortlist) - 1), open_F
