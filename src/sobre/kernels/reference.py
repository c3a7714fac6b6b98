"""The specification of every kernel, in plain torch: what a fast version must equal, forward and gradient.

Written for the reader, not for speed: each function is the formula. `select.py` puts faster ones in its place.

Shapes (docs/shapes.md): N tokens, D width, E experts, A active experts per token, F expert width, M routed copies
(N * A), V vocabulary, R sequences, T positions of one, H query heads, G key/value heads, K query/key width, W value
width. In `rope` the last dimension is the rotary one, R wide, and R2 is its half.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sobre.kernels.paged import Places


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, in float32 at least, rounded once at the end (arXiv 1910.07467)."""
    wide = _widen(x)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T (+ b), with W stored (out, in)."""
    return F.linear(x, weight, bias)


def router_scores(x_ND: Tensor, weight_ED: Tensor, score: str) -> Tensor:
    """How well each expert fits each token: sigmoid or softmax of its affinities, in float32 or wider."""
    affinities_NE = F.linear(_widen(x_ND), _widen(weight_ED))
    return affinities_NE.sigmoid() if score == "sigmoid" else affinities_NE.softmax(-1)


def best_experts(scores_NE: Tensor, n_active: int) -> Tensor:
    """The experts of the largest scores, the largest first; which of equals is not said: experts_NA."""
    return scores_NE.topk(n_active, dim=-1).indices


def heads_linear(x_NHK: Tensor, weight_HKW: Tensor) -> Tensor:
    """Every head of every token times the matrix of its head: y_NHW."""
    return torch.bmm(x_NHK.transpose(0, 1), weight_HKW).transpose(0, 1)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202), in float32 at least."""
    return (F.silu(_widen(gate)) * _widen(up)).to(gate.dtype)


def rope(x_NHR: Tensor, cos_NR2: Tensor, sin_NR2: Tensor, interleaved: bool) -> Tensor:
    """Rotate pairs by the angle of each token: pairs (x0, x1), (x2, x3), ... or (x0, x_R2), (x1, x_R2+1), ...

    The layout of the pairs is kept: interleaved in, interleaved out.
    """
    wide_NHR = _widen(x_NHR)
    cos_N1R2, sin_N1R2 = cos_NR2.unsqueeze(1), sin_NR2.unsqueeze(1)
    a, b = (wide_NHR[..., 0::2], wide_NHR[..., 1::2]) if interleaved else wide_NHR.chunk(2, dim=-1)
    rotated = (a * cos_N1R2 - b * sin_N1R2, a * sin_N1R2 + b * cos_N1R2)
    out_NHR = torch.stack(rotated, dim=-1).flatten(-2) if interleaved else torch.cat(rotated, dim=-1)
    return out_NHR.to(x_NHR.dtype)


def latent_heads(
    q_NHK: Tensor,
    kv_MHX: Tensor,
    k_rope_MR: Tensor,
    cos_NR2: Tensor,
    sin_NR2: Tensor,
    interleaved: bool,
    *,
    rotate: Callable[[Tensor, Tensor, Tensor, bool], Tensor] = rope,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of latent attention (arXiv 2405.04434, 2.1.3): the last R numbers of each query are
    rotated; a head's key is what kv begins with and the rotary key of all heads, rotated before; its value the rest.
    """
    n_rotary, n_heads = k_rope_MR.shape[1], kv_MHX.shape[1]
    n_plain = q_NHK.shape[2] - n_rotary
    rotated_NHR = rotate(q_NHK[..., n_plain:], cos_NR2, sin_NR2, interleaved)
    k_rope_MHR = k_rope_MR.unsqueeze(1).expand(-1, n_heads, -1)
    return (
        torch.cat([q_NHK[..., :n_plain], rotated_NHR], -1),
        torch.cat([kv_MHX[..., :n_plain], k_rope_MHR], -1),
        kv_MHX[..., n_plain:],
    )


def causal_attention(q_NHK: Tensor, k_NGK: Tensor, v_NGW: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """softmax(scale * q k^T) v over a sequence's earlier positions and one's own, for each of R ragged sequences.

    `lengths` are their tokens, which sum to N. Query head h reads key head h // (H // G).
    """
    n_repeats = q_NHK.shape[1] // k_NGK.shape[1]
    k_NHK, v_NHW = k_NGK.repeat_interleave(n_repeats, dim=1), v_NGW.repeat_interleave(n_repeats, dim=1)
    sequences = zip(*(x.split(list(lengths)) for x in (q_NHK, k_NHK, v_NHW)), strict=True)
    outs_THW = []
    for q_THK, k_THK, v_THW in sequences:
        scores_HTT = torch.einsum("thk,shk->hts", _widen(q_THK), _widen(k_THK)) * scale
        probs_HTT = scores_HTT.masked_fill(torch.ones_like(scores_HTT[0], dtype=torch.bool).triu(1), -torch.inf)
        outs_THW.append(torch.einsum("hts,shw->thw", probs_HTT.softmax(-1), _widen(v_THW)))
    return torch.cat(outs_THW).to(v_NGW.dtype)


def tail_attention(q_THK: Tensor, k_SGK: Tensor, v_SGW: Tensor, scale: float) -> Tensor:
    """The last T of S positions of a sequence, each of which sees the positions up to its own."""
    n_queries, n_keys = len(q_THK), len(k_SGK)
    later_TS = torch.zeros(n_queries, n_keys, device=q_THK.device)
    later_TS.masked_fill_(torch.ones_like(later_TS, dtype=torch.bool).triu(n_keys - n_queries + 1), -torch.inf)
    return cached_attention(q_THK[None], k_SGK[None], v_SGW[None], later_TS[None], scale)[0]


def cached_attention(q_RTHK: Tensor, k_RSGK: Tensor, v_RSGW: Tensor, later_RTS: Tensor, scale: float) -> Tensor:
    """Attention of new tokens to cached ones; `later_RTS` is minus infinity where a token must not look, else 0."""
    n_repeats = q_RTHK.shape[2] // k_RSGK.shape[2]
    k_RSHK, v_RSHW = k_RSGK.repeat_interleave(n_repeats, dim=2), v_RSGW.repeat_interleave(n_repeats, dim=2)
    scores_RHTS = torch.einsum("rthk,rshk->rhts", _widen(q_RTHK), _widen(k_RSHK)) * scale
    probs_RHTS = (scores_RHTS + later_RTS.unsqueeze(1)).softmax(-1)
    return torch.einsum("rhts,rshw->rthw", probs_RHTS, _widen(v_RSHW)).to(q_RTHK.dtype)


def latent_decode(q_RHC: Tensor, cells_MC: Tensor, places: Places, rank: int, scale: float) -> Tensor:
    """One new token for each of R sequences: all its heads attend to the cached entries (key: the first C numbers of
    each; value: the first `rank`), which lie where `places` says."""
    outs_HC = []
    for q_HC, entries_SC in zip(q_RHC, _cached(cells_MC, places), strict=True):
        entry_SC = entries_SC[:, : q_HC.shape[1]]
        outs_HC.append((_widen(q_HC) @ entry_SC.T * scale).softmax(-1) @ entry_SC[:, :rank])
    return torch.stack(outs_HC).to(q_RHC.dtype)


def grouped_decode(
    q_RHK: Tensor, cells_MC: Tensor, places: Places, n_groups: int, v_width: int, scale: float
) -> Tensor:
    """One new token for each of R sequences, whose cached entries hold G keys and then G values; query head h reads
    those of key head h // (H // G)."""
    n_repeats, n_keys = q_RHK.shape[1] // n_groups, n_groups * q_RHK.shape[2]
    outs_HW = []
    for q_HK, entries_SC in zip(q_RHK, _cached(cells_MC, places), strict=True):
        k_SHK, v_SHW = (
            part.unflatten(-1, (n_groups, -1)).repeat_interleave(n_repeats, 1)
            for part in entries_SC[:, : n_keys + n_groups * v_width].tensor_split([n_keys], -1)
        )
        probs_HS = (torch.einsum("hk,shk->hs", _widen(q_HK), k_SHK) * scale).softmax(-1)
        outs_HW.append(torch.einsum("hs,shw->hw", probs_HS, v_SHW))
    return torch.stack(outs_HW).to(q_RHK.dtype)


def _cached(cells_MC: Tensor, places: Places) -> Iterator[Tensor]:
    """The entries of one sequence after the other."""
    for blocks_B, length in zip(places.table_RB, places.lengths_R.tolist(), strict=True):
        position_S = torch.arange(length, device=cells_MC.device)
        yield _widen(cells_MC[blocks_B[position_S // places.block] * places.block + position_S % places.block])


def keep_likely(
    probs_RV: Tensor, rows_F: Tensor, top_k_F: Tensor, top_p_F: Tensor, min_p_F: Tensor, most_k: int
) -> None:
    """Zero, in place, what the filters of some rows leave out: tokens less probable than the last one that must stay.

    top_k keeps so many (V or more: all), top_p of those as few as hold that share of their probability (float64), min_p
    what is at least that share of the largest. `most_k` is the largest top_k below V, which is known to the host.
    """
    for row, top_k, top_p, min_p in zip(rows_F, top_k_F.tolist(), top_p_F.tolist(), min_p_F, strict=True):
        ranked_J = probs_RV[row].sort(descending=True).values[:top_k]
        sums_J = ranked_J.double().cumsum(0)
        n_kept = int((sums_J < top_p * sums_J[-1]).sum()) + 1
        last = torch.maximum(ranked_J[min(n_kept, len(ranked_J)) - 1], ranked_J[0] * min_p)
        probs_RV[row] = probs_RV[row].masked_fill(probs_RV[row] < last, 0.0)


def draw(logits_RV: Tensor, scale_R1: Tensor | None, uniforms_R: Tensor) -> tuple[Tensor, Tensor]:
    """tokens_R, the first at which the distribution function of softmax(logits * scale) exceeds its uniform number,
    and their logprobs_R (float64)."""
    probs_RV = (logits_RV if scale_R1 is None else logits_RV * scale_R1).softmax(-1).double()
    sums_RV = probs_RV.cumsum(-1)
    last_R = sums_RV.argmax(-1)  # where a target that rounding lifted to the total falls back to
    tokens_R = torch.minimum((sums_RV <= uniforms_R[:, None] * sums_RV[:, -1:]).sum(-1), last_R)
    return tokens_R, (probs_RV.gather(1, tokens_R[:, None]) / sums_RV[:, -1:]).log().squeeze(1)


def grouped_linear(x_MD: Tensor, weight_EFD: Tensor, counts_E: Tensor | Sequence[int]) -> Tensor:
    """Rows sorted by expert, counts_E of each: y_MF, where every row meets the matrix of its expert."""
    rows_per_expert = x_MD.split(counts_E.tolist() if isinstance(counts_E, Tensor) else list(counts_E))
    return torch.cat([F.linear(rows, weight_FD) for rows, weight_FD in zip(rows_per_expert, weight_EFD, strict=True)])


def moe_ffn(
    x_ND: Tensor,
    experts_NA: Tensor,
    weights_NA: Tensor,
    gate_EFD: Tensor,
    up_EFD: Tensor,
    down_EDF: Tensor,
    linear: Callable[..., Tensor] = grouped_linear,
) -> Tensor:
    """Sum over the A experts of each token of weight * down(swiglu(gate(x), up(x))); no expert is ever full.

    `linear` is what multiplies the sorted rows, such as FP8's.
    """
    n_experts, n_active = gate_EFD.shape[0], experts_NA.shape[1]
    order_M = experts_NA.flatten().argsort(stable=True)
    counts_E = experts_NA.flatten().bincount(minlength=n_experts)
    token_M = order_M // n_active
    x_MD = x_ND[token_M]
    inner_MF = swiglu(linear(x_MD, gate_EFD, counts_E), linear(x_MD, up_EFD, counts_E))
    y_MD = linear(inner_MF, down_EDF, counts_E) * weights_NA.flatten()[order_M, None]
    return torch.zeros_like(x_ND, dtype=y_MD.dtype).index_add(0, token_M, y_MD).to(x_ND.dtype)


def take_rows(x_ND: Tensor, token_M: Tensor, place_NA: Tensor) -> Tensor:
    """x_MD: each token at the rows of its copies. `place_NA`, the rows of each token, is what the gradient needs."""
    return x_ND[token_M]


def weighted_swiglu(gate_MF: Tensor, up_MF: Tensor, weights_M: Tensor) -> Tensor:
    """swiglu(gate, up) times one weight for each row."""
    return (F.silu(_widen(gate_MF)) * _widen(up_MF) * _widen(weights_M).unsqueeze(1)).to(gate_MF.dtype)


def sum_rows(y_MD: Tensor, token_M: Tensor, place_NA: Tensor) -> Tensor:
    """y_ND: the sum of each token's A rows, in float32 at least. `token_M` is what the gradient needs."""
    return _widen(y_MD[place_NA]).sum(1).to(y_MD.dtype)


def linear_nll(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, kept_NB: Tensor | None = None) -> Tensor:
    """-log softmax(hidden weight^T)[target] of each token, in float32 at least; over the tokens of `kept_NB` alone,
    where it is given: a bit for each, the first in the lowest bit of the first byte."""
    logits_NV = _widen(F.linear(hidden_ND, weight_VD))
    if kept_NB is not None:
        logits_NV = logits_NV.masked_fill(~bits(kept_NB, logits_NV.shape[1]), -torch.inf)
    return F.cross_entropy(logits_NV, targets_N, reduction="none")


def bits(packed_NB: Tensor, n: int) -> Tensor:
    """n bits of each row (bool), the lowest bit of a byte first; False where the bytes end before."""
    places_8 = torch.arange(8, dtype=torch.uint8, device=packed_NB.device)
    found = (packed_NB.unsqueeze(-1) >> places_8 & 1).flatten(-2)[..., :n].bool()
    return F.pad(found, (0, n - found.shape[-1]))


def _widen(x: Tensor) -> Tensor:
    """At least float32; float64 stays, so that gradients can be checked."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
