"""Output head and cross entropy in one function, by chunks of tokens: the N x V logits never exist at once.

A chunk of logits is turned in place into what its gradient needs, softmax - onehot, rounded to the working dtype. These
are kept for the backward pass up to `SAVE_BYTES` (N x V once, no second head product) and computed again beyond.
The logits are rounded to the working dtype, as an ordinary output head would; everything after that is float32.

Shapes: N tokens, D width, V vocabulary, C tokens of a chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 1 << 22
"""float32 logits of one chunk: small enough to stay in the cache between the passes over them."""
SAVE_BYTES = 1 << 28


def linear_nll(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The same function as `reference.linear_nll`."""
    return _HeadNLL.apply(hidden_ND, weight_VD, targets_N)


def _chunk(hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """nll_C and errors_CV = softmax - onehot, at least float32."""
    wide = torch.promote_types(hidden_CD.dtype, torch.float32)
    logits_CV = F.linear(hidden_CD, weight_VD).to(wide)
    target_C1 = targets_C.unsqueeze(1)
    errors_CV = torch.softmax(logits_CV, -1)
    # log-sum-exp without another pass of exponentials: the largest logit less the log of its probability
    lse_C = logits_CV.amax(-1) - errors_CV.amax(-1).log_()
    nll_C = lse_C - logits_CV.gather(1, target_C1).squeeze(1)
    return nll_C, errors_CV.scatter_add_(1, target_C1, errors_CV.new_full((), -1.0).expand_as(target_C1))


class _HeadNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        n_tokens, n_words = hidden_ND.shape[0], weight_VD.shape[0]
        ctx.rows = max(32, CHUNK_BYTES // (4 * n_words) // 32 * 32)
        keep = any(ctx.needs_input_grad) and n_tokens * n_words * hidden_ND.element_size() <= SAVE_BYTES
        errors_NV = hidden_ND.new_empty(n_tokens, n_words) if keep else None
        nlls = []
        for begin in range(0, n_tokens, ctx.rows):
            chunk = slice(begin, begin + ctx.rows)
            nll_C, errors_CV = _chunk(hidden_ND[chunk], weight_VD, targets_N[chunk])
            nlls.append(nll_C)
            if errors_NV is not None:
                errors_NV[chunk] = errors_CV
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, errors_NV)
        return (
            torch.cat(nlls)
            if nlls
            else hidden_ND.new_empty(0, dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dnll_N: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_ND, weight_VD, targets_N, errors_NV = ctx.saved_tensors
        dnll_N1 = dnll_N.to(hidden_ND.dtype).unsqueeze(1)
        if errors_NV is not None:
            dhidden_ND = torch.mm(errors_NV, weight_VD).mul_(dnll_N1)
            return dhidden_ND, torch.mm(errors_NV.t(), hidden_ND * dnll_N1), None
        dhidden_ND, dweight_VD = torch.empty_like(hidden_ND), torch.zeros_like(weight_VD)
        for begin in range(0, hidden_ND.shape[0], ctx.rows):
            chunk = slice(begin, begin + ctx.rows)
            errors_CV = _chunk(hidden_ND[chunk], weight_VD, targets_N[chunk])[1].to(hidden_ND.dtype)
            dhidden_ND[chunk] = torch.mm(errors_CV, weight_VD).mul_(dnll_N1[chunk])
            dweight_VD.addmm_(errors_CV.t(), hidden_ND[chunk] * dnll_N1[chunk])
        return dhidden_ND, dweight_VD, None
