"""Attention of a step that needs no cache: to its own keys, or to those of all pieces when its sequences are divided.

Shapes: N tokens of the step, M of all pieces (N where sequences are whole), H query heads, G key/value heads, K
query/key width, W value width, X any numbers of a token.
"""

from itertools import accumulate

import torch
from torch import Tensor

from sobre.kernels import select
from sobre.models.step import StepInput


def whole(step: StepInput, a_NX: Tensor, b_NX: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values, or what they are made from, of every token that a query may see."""
    if step.pieces is None:
        return a_NX, b_NX
    both_MX = step.pieces.whole(torch.cat([a_NX.flatten(1), b_NX.flatten(1)], -1))
    a_MX, b_MX = both_MX.split([a_NX[0].numel(), b_NX[0].numel()], -1)
    return a_MX.unflatten(-1, a_NX.shape[1:]), b_MX.unflatten(-1, b_NX.shape[1:])


def attend(q_NHK: Tensor, k_MGK: Tensor, v_MGW: Tensor, step: StepInput, scale: float) -> Tensor:
    """Causal attention within each sequence: out_NHW."""
    if step.pieces is None:
        return select.causal_attention(q_NHK, k_MGK, v_MGW, step.lengths, scale)
    firsts = list(accumulate(step.pieces.lengths, initial=0))
    starts = step.starts or (0,) * step.n_sequences
    outs = []
    for q_THK, start, sequence in zip(q_NHK.split(step.lengths), starts, step.pieces.sequences, strict=True):
        first = firsts[sequence]
        seen = slice(first, first + start + len(q_THK))
        outs.append(select.tail_attention(q_THK, k_MGK[seen], v_MGW[seen], scale))
    return torch.cat(outs)
