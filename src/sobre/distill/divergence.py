"""How far a student's next-token distributions are from a teacher's: over the whole vocabulary, never over a sample.

Agarwal et al. (arXiv 2306.13649, 3): with p the student's and q the teacher's probabilities,

    beta = 1    reverse KL  sum_v p log(p / q)      the student gives up what the teacher would not say
    beta = 0    forward KL  sum_v q log(q / p)      the student covers everything that the teacher might say
    between     beta KL(q || m) + (1 - beta) KL(p || m),  m = beta q + (1 - beta) p

The logits of both heads are computed by chunks and again in the backward pass, so that no N x V tensor is kept: a
vocabulary of 150,000 costs time and no memory.

Shapes: N tokens, C tokens of a chunk, V vocabulary, D width of the student, E width of the teacher.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 1 << 26
"""Logits of one chunk in float32, of one of the two models."""


def divergence(student_NV: Tensor, teacher_NV: Tensor, beta: float) -> Tensor:
    """The divergence of each token (float32 at least), from logits; no gradient reaches the teacher."""
    wide = torch.promote_types(student_NV.dtype, torch.float32)
    log_p_NV = student_NV.to(wide).log_softmax(-1)
    log_q_NV = teacher_NV.detach().to(wide).log_softmax(-1)
    if beta == 1:
        return kl(log_p_NV, log_q_NV)
    if beta == 0:
        return kl(log_q_NV, log_p_NV)
    log_beta, log_rest = torch.tensor([beta, 1 - beta]).log()
    log_m_NV = torch.logaddexp(log_q_NV + log_beta, log_p_NV + log_rest)
    return beta * kl(log_q_NV, log_m_NV) + (1 - beta) * kl(log_p_NV, log_m_NV)


def kl(log_a_NV: Tensor, log_b_NV: Tensor) -> Tensor:
    """KL(a || b) of each token: sum_v a (log a - log b)."""
    return (log_a_NV.exp() * (log_a_NV - log_b_NV)).sum(-1)


def head_divergence(
    hidden_ND: Tensor, head_VD: Tensor, teacher_NE: Tensor, teacher_head_VE: Tensor, beta: float
) -> Tensor:
    """`divergence` of two models from their last hidden states and output heads, by chunks."""

    def part(hidden_CD: Tensor, head_VD: Tensor, teacher_CE: Tensor) -> Tensor:
        return divergence(hidden_CD @ head_VD.T, teacher_CE @ teacher_head_VE.T, beta)

    rows = max(1, CHUNK_BYTES // (4 * head_VD.shape[0]))
    chunks = zip(hidden_ND.split(rows), teacher_NE.split(rows), strict=True)
    if hidden_ND.shape[0] <= rows:
        return torch.cat([part(hidden_CD, head_VD, teacher_CE) for hidden_CD, teacher_CE in chunks])
    parts = [checkpoint(part, hidden_CD, head_VD, teacher_CE, use_reentrant=False) for hidden_CD, teacher_CE in chunks]
    return torch.cat(parts)
