"""Output head and cross entropy in one function: no float32 copy of the N x V logits ever exists.

The logits are turned, in place and by chunks that fit the cache, into what the gradient needs: softmax - onehot,
rounded to the working dtype. Where they fit `SAVE_BYTES` they are kept for the backward pass (N x V once, one large
product, no second one); else each chunk is computed, used and computed again. Under a frozen head the gradient of the
hidden states, N x D, is made on the way forward and kept instead. The logits are rounded to the working dtype, as an
ordinary output head would; everything after that is float32. Where only some tokens are kept, the logits of the others
become -inf before all of this.

Shapes: N tokens, D width, V vocabulary, C tokens of a chunk, B bytes of a row of bits.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sobre.kernels.reference import bits

CHUNK_BYTES = 1 << 21
"""Logits of one chunk in float32, on a CPU: they stay in its cache."""
WIDE_CHUNK_BYTES = 1 << 28
"""The same on an accelerator, where a call costs more than a pass over memory."""
SAVE_BYTES = 1 << 28
WIDE_SAVE_BYTES = 1 << 30

Turn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits_NV, targets_N, nll_N): overwrite the logits with softmax - onehot, fill nll_N, return the logits."""


def linear_nll(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    kept_NB: Tensor | None = None,
    *,
    turn: Turn | None = None,
) -> Tensor:
    """The same function as `reference.linear_nll`; `turn` makes gradients of logits, by torch unless given."""
    return _HeadNLL.apply(hidden_ND, weight_VD, targets_N, kept_NB, turn or _logits_to_errors)


def _save_bytes(x: Tensor) -> int:
    return SAVE_BYTES if x.device.type == "cpu" else WIDE_SAVE_BYTES


def _chunks(n_tokens: int, n_words: int, bytes_each: int) -> Iterator[slice]:
    rows = max(32, bytes_each // (4 * n_words) // 32 * 32)
    return (slice(begin, min(begin + rows, n_tokens)) for begin in range(0, n_tokens, rows))


def _logits(hidden_ND: Tensor, weight_VD: Tensor, kept_NB: Tensor | None, part: slice) -> Tensor:
    """The logits of some tokens, -inf for the words that are not kept."""
    logits_CV = F.linear(hidden_ND[part], weight_VD)
    if kept_NB is not None:
        logits_CV.masked_fill_(~bits(kept_NB[part], logits_CV.shape[1]), -torch.inf)
    return logits_CV


def _logits_to_errors(logits_NV: Tensor, targets_N: Tensor, nll_N: Tensor) -> Tensor:
    """Overwrite the logits with softmax - onehot; fill nll_N."""
    bytes_each = CHUNK_BYTES if logits_NV.device.type == "cpu" else WIDE_CHUNK_BYTES
    for chunk in _chunks(logits_NV.shape[0], logits_NV.shape[1], bytes_each):
        wide_CV = logits_NV[chunk].to(nll_N.dtype)
        target_C1 = targets_N[chunk].unsqueeze(1)
        probs_CV = torch.softmax(wide_CV, -1)
        # log-sum-exp without another pass of exponentials: the largest logit less the log of its probability
        lse_C = wide_CV.amax(-1).sub_(probs_CV.amax(-1).log_())
        torch.sub(lse_C, wide_CV.gather(1, target_C1).squeeze(1), out=nll_N[chunk])
        probs_CV.scatter_add_(1, target_C1, probs_CV.new_full((), -1.0).expand_as(target_C1))
        logits_NV[chunk] = probs_CV
    return logits_NV


class _HeadNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, kept_NB: Tensor | None, turn: Turn
    ) -> Tensor:
        ctx.turn = turn
        n_tokens, n_words = hidden_ND.shape[0], weight_VD.shape[0]
        nll_N = hidden_ND.new_empty(n_tokens, dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
        errors_NV = None
        if not ctx.needs_input_grad[1]:
            dhidden_ND = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
            for chunk in _chunks(n_tokens, n_words, _save_bytes(hidden_ND)):
                errors_CV = turn(_logits(hidden_ND, weight_VD, kept_NB, chunk), targets_N[chunk], nll_N[chunk])
                if dhidden_ND is not None:
                    torch.mm(errors_CV, weight_VD, out=dhidden_ND[chunk])
            ctx.save_for_backward(dhidden_ND)
            return nll_N
        if n_tokens * n_words * hidden_ND.element_size() <= _save_bytes(hidden_ND):
            errors_NV = turn(_logits(hidden_ND, weight_VD, kept_NB, slice(None)), targets_N, nll_N)
        else:
            for chunk in _chunks(n_tokens, n_words, _save_bytes(hidden_ND)):
                turn(_logits(hidden_ND, weight_VD, kept_NB, chunk), targets_N[chunk], nll_N[chunk])
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, errors_NV, kept_NB)
        return nll_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dnll_N: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[1]:
            (dhidden_ND,) = ctx.saved_tensors
            return dhidden_ND * dnll_N.to(dhidden_ND.dtype).unsqueeze(1), None, None, None, None
        hidden_ND, weight_VD, targets_N, errors_NV, kept_NB = ctx.saved_tensors
        dnll_N1 = dnll_N.to(hidden_ND.dtype).unsqueeze(1)
        if errors_NV is not None:
            dhidden_ND = torch.mm(errors_NV, weight_VD).mul_(dnll_N1)
            return dhidden_ND, torch.mm(errors_NV.t(), hidden_ND * dnll_N1), None, None, None
        dhidden_ND, dweight_VD = torch.empty_like(hidden_ND), torch.zeros_like(weight_VD)
        for chunk in _chunks(hidden_ND.shape[0], weight_VD.shape[0], _save_bytes(hidden_ND)):
            logits_CV = _logits(hidden_ND, weight_VD, kept_NB, chunk)
            errors_CV = ctx.turn(logits_CV, targets_N[chunk], torch.empty_like(dnll_N[chunk]))
            dhidden_ND[chunk] = torch.mm(errors_CV, weight_VD).mul_(dnll_N1[chunk])
            dweight_VD.addmm_(errors_CV.t(), hidden_ND[chunk] * dnll_N1[chunk])
        return dhidden_ND, dweight_VD, None, None, None
