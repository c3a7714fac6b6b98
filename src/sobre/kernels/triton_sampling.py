"""The draw of the next token in one kernel: softmax, distribution function and its inverse, a program for each row.

The logits are read twice: for their largest and the sums of their blocks, and until the block in which the uniform
number lies. Sums run in float64, as in `reference.draw`, so that the same number draws the same token.

Shapes: R rows, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDE = 1024


def draw(logits_RV: Tensor, scale_R1: Tensor | None, uniforms_R: Tensor) -> tuple[Tensor, Tensor]:
    """The same function as `reference.draw`."""
    n_rows, n_words = logits_RV.shape
    tokens_R = torch.empty(n_rows, dtype=torch.int64, device=logits_RV.device)
    logprobs_R = torch.empty(n_rows, dtype=torch.float64, device=logits_RV.device)
    scale = logits_RV if scale_R1 is None else scale_R1
    block = min(WIDE, triton.next_power_of_2(n_words))
    _draw_kernel[(n_rows,)](
        logits_RV.contiguous(), scale, uniforms_R, tokens_R, logprobs_R, n_words, scale_R1 is not None, WIDE=block
    )
    return tokens_R, logprobs_R


@triton.jit
def _draw_kernel(
    logits_ptr, scale_ptr, uniforms_ptr, tokens_ptr, logprobs_ptr, n_words, HAS_SCALE: tl.constexpr, WIDE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * n_words
    scale = 1.0
    if HAS_SCALE:
        scale = tl.load(scale_ptr + row)
    largest = tl.full((WIDE,), float("-inf"), dtype=tl.float32)
    for begin in range(0, n_words, WIDE):
        word = begin + tl.arange(0, WIDE)
        largest = tl.maximum(largest, tl.load(logits_ptr + word, mask=word < n_words, other=float("-inf")) * scale)
    highest = tl.max(largest, 0)
    sums = tl.zeros((WIDE,), dtype=tl.float64)
    for begin in range(0, n_words, WIDE):
        word = begin + tl.arange(0, WIDE)
        logit = tl.load(logits_ptr + word, mask=word < n_words, other=float("-inf")) * scale
        sums += tl.exp(logit - highest).to(tl.float64)
    total = tl.sum(sums, 0)
    target = tl.load(uniforms_ptr + row) * total
    below = tl.zeros((), dtype=tl.float64)
    token = tl.full((), -1, dtype=tl.int64)
    weight = tl.zeros((), dtype=tl.float64)
    last = tl.zeros((), dtype=tl.int64)
    last_weight = tl.zeros((), dtype=tl.float64)
    for begin in range(0, n_words, WIDE):
        if token < 0:
            word = begin + tl.arange(0, WIDE)
            logit = tl.load(logits_ptr + word, mask=word < n_words, other=float("-inf")) * scale
            weights = tl.exp(logit - highest).to(tl.float64)
            inside = tl.sum(weights, 0)
            if inside > 0:
                # rounding may lift the target to the total: then the last token with any weight is taken
                last = tl.max(tl.where(weights > 0, word, 0), 0).to(tl.int64)
                last_weight = tl.sum(tl.where(word == last, weights, 0.0), 0)
            if below + inside > target:
                passed = below + tl.cumsum(weights, 0) <= target
                first = tl.minimum(tl.sum(passed.to(tl.int64), 0), last - begin)
                token = begin + first
                weight = tl.sum(tl.where(word == token, weights, 0.0), 0)
            below += inside
    chosen = tl.where(token < 0, last, token)
    tl.store(tokens_ptr + row, chosen)
    tl.store(logprobs_ptr + row, tl.log(tl.where(token < 0, last_weight, weight) / total))
