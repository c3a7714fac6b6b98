"""The choice of the next token: keyed randomness, filters, inverse distribution function.

Every token takes one uniform number, a hash of (run seed, request seed, position), and no generator anywhere keeps a
state: what a request gets depends on its own logits alone, whoever shares its batch and in whatever order they came.
The hash is SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").

The number meets the distribution function in `kernels/draw.py`, or in a kernel that is selected in its place.

Shapes: R rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sobre.engine.request import Kept, SamplingParams
from sobre.kernels import select
from sobre.kernels.draw import invert, log, pick
from sobre.runtime.device import carried, exact

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64-bit integers in which every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(run_seed: int, request_seeds: Sequence[int]) -> NDArray[np.uint64]:
    """One key per request; seeds are taken modulo 2**64."""
    run = mix64(np.array([run_seed & _MASK], dtype=np.uint64) + _GOLDEN)
    seeds = np.array([seed & _MASK for seed in request_seeds], dtype=np.uint64)
    return mix64(run ^ mix64(seeds * _GOLDEN + _GOLDEN))


def uniforms(keys_R: NDArray[np.uint64], positions_R: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number of 53 bits in [0, 1) for each (key, position)."""
    bits = mix64(keys_R + (positions_R.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class Choice:
    """How each row of a batch samples; made once for as long as the batch stays the same."""

    keys_R: NDArray[np.uint64]
    scale_R1: Tensor | None
    """1 / temperature; None when all are 1. Greedy rows have 1."""
    greedy_R: Tensor | None
    """Rows that take the most probable token; None when no row does."""
    all_greedy: bool
    filtered: Tensor | None
    """Indices of rows with top_k, top_p or min_p; None when no row has them."""
    top_k: Tensor
    """Of the filtered rows; V or more means off."""
    top_p: Tensor
    min_p: Tensor
    most_k: int
    """The largest top_k that is not off; 0 when all are."""
    kept: tuple[int, ...]
    """Rows of which `sample` says what the filters left."""

    @staticmethod
    def of(
        params: Sequence[SamplingParams],
        run_seed: int,
        vocab_size: int,
        device: str | torch.device,
        *,
        keeps: bool = False,
    ) -> "Choice":
        home = torch.device("cpu" if torch.device(device).type == "mps" else device)  # as `exact`

        def there(values: Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
            return carried(torch.tensor(values, dtype=dtype), home)

        greedy = [p.temperature == 0 for p in params]
        scales = [1.0 if p.temperature == 0 else 1.0 / p.temperature for p in params]
        filtered = [i for i, p in enumerate(params) if p.is_filtered]
        return Choice(
            keys_R=keys(run_seed, [p.seed for p in params]),
            scale_R1=there(scales).unsqueeze(1) if set(scales) != {1.0} else None,
            greedy_R=there(greedy) if any(greedy) else None,
            all_greedy=all(greedy),
            filtered=there(filtered) if filtered else None,
            top_k=there([params[i].top_k or vocab_size for i in filtered]),
            top_p=there([params[i].top_p for i in filtered], torch.float64),
            min_p=there([params[i].min_p for i in filtered]),
            most_k=max((k for i in filtered if (k := params[i].top_k) < vocab_size), default=0),
            kept=tuple(filtered) if keeps else (),
        )


def sample(logits_RV: Tensor, choice: Choice, positions_R: NDArray[np.int64]) -> tuple[Tensor, Tensor, dict[int, Kept]]:
    """tokens_R, their logprobs_R (float64), and by row what those that `choice` names chose from; a row of logits that
    is no distribution has a NaN logprob."""
    home, logits_RV = logits_RV.device, exact(logits_RV)
    if choice.filtered is None and choice.greedy_R is None:
        tokens_R, logprobs_R = select.draw(logits_RV, choice.scale_R1, _uniforms_R(choice, positions_R, logits_RV))
        return tokens_R.to(home), logprobs_R, {}
    scaled_RV = logits_RV if choice.scale_R1 is None else logits_RV * choice.scale_R1
    probs_RV = scaled_RV.softmax(-1)
    if choice.filtered is not None:
        limits = (choice.top_k, choice.top_p, choice.min_p)
        select.keep_likely(probs_RV, choice.filtered, *limits, choice.most_k)
    if choice.all_greedy:
        tokens_R = logits_RV.argmax(-1)
        return tokens_R.to(home), log(pick(probs_RV, tokens_R).double()), {}
    tokens_R, totals_R = invert(probs_RV, _uniforms_R(choice, positions_R, logits_RV))
    if choice.greedy_R is not None:
        tokens_R = torch.where(choice.greedy_R, logits_RV.argmax(-1), tokens_R)
        totals_R = totals_R.masked_fill(choice.greedy_R, 1.0)  # as when all are greedy, to the last bit
    kept = _chosen_from(probs_RV, choice) if choice.kept else {}
    return tokens_R.to(home), log(pick(probs_RV, tokens_R) / totals_R), kept


def _uniforms_R(choice: Choice, positions_R: NDArray[np.int64], logits_RV: Tensor) -> Tensor:
    """The rows' numbers, where the logits are."""
    return carried(torch.from_numpy(uniforms(choice.keys_R, positions_R)), logits_RV.device)


def _chosen_from(probs_RV: Tensor, choice: Choice) -> dict[int, Kept]:
    """The tokens of the filtered rows that have a probability left."""
    kept_FV = (probs_RV[choice.filtered] > 0).cpu()
    tokens = kept_FV.nonzero()[:, 1].to(torch.int32).numpy()
    return dict(zip(choice.kept, np.split(tokens, kept_FV.sum(-1).cumsum(0)[:-1].numpy()), strict=True))


def model_logprobs(logits_V: Tensor, n_top: int) -> tuple[Tensor, list[tuple[int, float]]]:
    """logprobs_V (float64) under the model's own logits, and the most probable tokens with theirs."""
    logprobs_V = exact(logits_V).double().log_softmax(-1)
    top = logprobs_V.topk(min(n_top, len(logprobs_V)))
    return logprobs_V, list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
