"""What a request wants done to the logits before one is sampled: penalties, bias, mask, the forced end of a thought.

Everything is a function of the request and its answer so far, recomputed at every token; no state can go stale when a
request is preempted or a speculated token is taken back. Requests that ask for nothing cost nothing.

Shapes: V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sobre.engine.request import Request
from sobre.errors import EngineError
from sobre.runtime.device import carried


def is_shaped(request: Request) -> bool:
    """Whether this request wants anything done to its logits."""
    params = request.params
    penalised = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1
    return bool(penalised or params.logit_bias or request.mask is not None or request.thought is not None)


def shape(logits_V: Tensor, request: Request, answer: Sequence[int], forced: int | None) -> None:
    """Change the logits of the token after `answer`, in place; `forced` is the one token that may come, if any.

    Raises EngineError when the request's mask fails, does not fit, or allows nothing.
    """
    if forced is not None:
        kept = logits_V[forced].clone()
        logits_V.fill_(-torch.inf)[forced] = kept
        return
    params = request.params
    if params.repetition_penalty != 1:
        seen = carried(torch.tensor([*request.prompt_ids, *answer]).unique(), logits_V.device)
        of_seen = logits_V[seen]
        logits_V[seen] = torch.where(
            of_seen > 0, of_seen / params.repetition_penalty, of_seen * params.repetition_penalty
        )
    if answer and (params.presence_penalty or params.frequency_penalty):
        tokens, counts = torch.tensor(answer).unique(return_counts=True)
        penalties = params.presence_penalty + params.frequency_penalty * counts
        logits_V[carried(tokens, logits_V.device)] -= carried(penalties, logits_V.device)
    if params.logit_bias:
        tokens, biases = zip(*params.logit_bias, strict=True)
        added = torch.tensor(biases, dtype=logits_V.dtype)
        logits_V.index_add_(0, carried(torch.tensor(tokens), logits_V.device), carried(added, logits_V.device))
    if request.mask is not None:
        _apply_mask(logits_V, request, answer)


def _apply_mask(logits_V: Tensor, request: Request, answer: Sequence[int]) -> None:
    assert request.mask is not None
    try:
        allowed_V = request.mask(answer)
    except Exception as error:
        raise EngineError(f"the mask of request {request.id!r} failed: {type(error).__name__}: {error}") from error
    if allowed_V is None:
        return
    if allowed_V.dtype != torch.bool or allowed_V.shape != logits_V.shape:
        got = f"{allowed_V.dtype} of shape {tuple(allowed_V.shape)}"
        raise EngineError(f"the mask of request {request.id!r} is {got}; it must be bool of shape ({len(logits_V)},)")
    if not allowed_V.any():
        raise EngineError(f"the mask of request {request.id!r} allows no token after {len(answer)} of its answer")
    logits_V.masked_fill_(carried(~allowed_V, logits_V.device), -torch.inf)
