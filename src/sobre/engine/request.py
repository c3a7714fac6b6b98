"""What is asked of the engine, and what comes back. No torch but for masks and the routes of an output.

The engine speaks token ids. Whatever needs text (stop strings, grammars, where a thought ends) reaches it as a function
of the token ids of the answer so far, or as ids.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from sobre.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length", "repetition", "abort", "error"]
"""stop: a stop token or the request's `stop`; length: `max_tokens`; repetition: `SamplingParams.repetition`; error: the
request's own mask or `stop` failed, and `Token.error` says how."""

COLDEST = 1e-5
"""Smallest temperature above 0: below it, scaled logits lose their meaning in float32."""
MAX_PERIOD = 256
"""Longest passage that the repetition stop looks for."""

Kept = NDArray[np.int32]
"""The tokens, in order, that top_k, top_p and min_p left to choose one from: few, where the model is sure."""
Stop = Callable[[Sequence[int]], bool]
"""Whether an answer of these tokens is complete; asked after every token."""
Mask = Callable[[Sequence[int]], "Tensor | None"]
"""allowed_V (bool, on the CPU): which tokens may follow an answer of these tokens; None when all may.

A pure function of the answer: speculation asks about answers that are then taken back.
"""


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """An answer that ends in one passage written `times` times is stopped."""

    max_period: int = 64
    """Longest passage looked for, in tokens."""
    times: int = 8
    """How often it must stand in a row."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_period <= MAX_PERIOD:
            raise EngineError(f"repetition.max_period={self.max_period} must lie in 1..{MAX_PERIOD}")
        if self.times < 2:
            raise EngineError(f"repetition.times={self.times} must be at least 2")


@dataclass(frozen=True, kw_only=True)
class Thought:
    """The answer begins inside a thought, which `end_ids` closes."""

    end_ids: tuple[int, ...]
    """The tokens that close it, by the model's own will or by force."""
    max_tokens: int | None = None
    """Tokens after which the engine writes `end_ids` itself; None lets the model think as long as it likes."""

    def __post_init__(self) -> None:
        if not self.end_ids:
            raise EngineError("thought.end_ids is empty; it must hold the tokens that close a thought")
        if self.max_tokens is not None and self.max_tokens < 0:
            raise EngineError(f"thought.max_tokens={self.max_tokens} must be at least 0, or None for no limit")


def longest_thought(room: int) -> int:
    """Most tokens of thought in an answer of `room` tokens that leave a quarter of it, at least 2, to what follows."""
    return room - max(2, room // 4) if room >= 8 else room


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. In this order: penalties, bias, mask, temperature, top_k, top_p, min_p."""

    max_tokens: int
    """Most new tokens; the stop token counts."""
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most probable token."""
    top_p: float = 1.0
    """Sample from the smallest set of most probable tokens that holds this share of what top_k left; 1 is off."""
    top_k: int = 0
    """Sample from the k most probable tokens (more when some tie with the last of them); 0 is off."""
    stop_ids: tuple[int, ...] = ()
    """A token of these ends the answer and is its last."""
    seed: int = 0
    """Same run seed, same request seed, same logits: same tokens. Samples of one prompt need seeds of their own."""
    min_p: float = 0.0
    """Leave out tokens less probable than this share of the most probable one; 0 is off."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that the answer holds."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token, once for each time that the answer holds it."""
    repetition_penalty: float = 1.0
    """Tokens of prompt and answer: positive logits are divided by it, negative ones multiplied (arXiv 1909.05858)."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit)."""
    n_logprobs: int | None = None
    """How many of the most probable tokens to list with each token, beside its own log-probability; None lists none."""
    repetition: Repetition | None = None
    """End an answer that goes in circles; None lets it."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise EngineError(f"max_tokens={self.max_tokens} must be at least 1")
        if self.temperature != 0 and not (math.isfinite(self.temperature) and self.temperature >= COLDEST):
            raise EngineError(f"temperature={self.temperature} must be 0 (greedy) or at least {COLDEST}")
        if not 0 < self.top_p <= 1:
            raise EngineError(f"top_p={self.top_p} must lie above 0 and at most at 1; 1 is off")
        if self.top_k < 0:
            raise EngineError(f"top_k={self.top_k} must be at least 1, or 0 for off")
        if not 0 <= self.min_p <= 1:
            raise EngineError(f"min_p={self.min_p} must lie in 0..1; 0 is off")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise EngineError(f"{name}={getattr(self, name)} must be a number; 0 is off")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise EngineError(f"repetition_penalty={self.repetition_penalty} must be above 0; 1 is off")
        wrong = [(token, bias) for token, bias in self.logit_bias if not math.isfinite(bias)]
        if wrong:
            raise EngineError(f"logit_bias of token {wrong[0][0]} is {wrong[0][1]}; it must be a number")
        if self.n_logprobs is not None and self.n_logprobs < 0:
            raise EngineError(f"n_logprobs={self.n_logprobs} must be at least 0, or None for none")

    @property
    def is_filtered(self) -> bool:
        """Whether some tokens are left out before one is drawn."""
        return bool(self.temperature and (self.top_k or self.top_p < 1 or self.min_p))


@dataclass
class Request:
    """One prompt to be continued. n samples of one prompt are n requests with seeds of their own."""

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    stop: Stop | None = None
    """Ends the answer, as a stop token does."""
    mask: Mask | None = None
    """A grammar, as which tokens may come next. One that allows no token at all ends the request with an error."""
    thought: Thought | None = None
    """Given when the prompt leaves a thought open."""
    cache_key: str = ""
    """What this request computes is found again by requests of the same key alone."""
    speculate: bool = True
    """Guess tokens ahead, where the engine does; the answer is the same."""


@dataclass(slots=True)
class Token:
    """One sampled token, as `Engine.step` hands it out."""

    request_id: str
    token_id: int
    """-1 when there is none, because finish_reason is "error"."""
    logprob: float
    """Under the distribution sampled from; of a greedy token, under the softmax at temperature 1."""
    finish_reason: FinishReason | None
    """Why the answer ends here; None while it goes on."""
    model_logprob: float | None = None
    """Under the softmax of the model's own logits, before everything in SamplingParams; None without n_logprobs."""
    top: tuple[tuple[int, float], ...] = ()
    """(token, log-probability) of the n_logprobs most probable tokens, under the model's own logits too."""
    error: str | None = None
    """What failed when finish_reason is "error"."""
    n_found: int = 0
    """Tokens of the prompt that were in the cache when the request first ran."""
    routes_LTA: "Tensor | None" = None
    """With the last token, what `Output` has; None without `EngineConfig.return_routes`."""
    kept: Kept | None = None
    """What it was chosen from; None without `EngineConfig.return_kept`, or where nothing is filtered."""


@dataclass
class Output:
    """Everything that one request got."""

    request_id: str
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "abort"
    routes_LTA: "Tensor | None" = None
    """Experts of every token that the model read: the prompt and all of the answer but its last token."""
    weight_version: int = 0
    """Version of the weights that sampled the first token; later tokens may come from later versions."""
    n_found: int = 0
    """Tokens of the prompt that were in the cache when the request first ran."""
    error: str | None = None
    """What failed when finish_reason is "error"."""
    kept: list[Kept] | None = None
    """What each token was chosen from, under `EngineConfig.return_kept`; None where nothing was filtered."""
