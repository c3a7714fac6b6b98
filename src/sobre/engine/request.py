"""What is asked of the engine, and what comes back. No torch but for the routes of an output."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sobre.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length", "abort"]

COLDEST = 1e-5
"""Smallest temperature above 0: below it, scaled logits lose their meaning in float32."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. The filters apply in this order: temperature, top_k, top_p."""

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

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise EngineError(f"max_tokens={self.max_tokens} must be at least 1")
        if self.temperature != 0 and not (math.isfinite(self.temperature) and self.temperature >= COLDEST):
            raise EngineError(f"temperature={self.temperature} must be 0 (greedy) or at least {COLDEST}")
        if not 0 < self.top_p <= 1:
            raise EngineError(f"top_p={self.top_p} must lie above 0 and at most at 1; 1 is off")
        if self.top_k < 0:
            raise EngineError(f"top_k={self.top_k} must be at least 1, or 0 for off")


@dataclass
class Request:
    """One prompt to be continued."""

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams


@dataclass(slots=True)
class Token:
    """One sampled token, as `Engine.step` hands it out."""

    request_id: str
    token_id: int
    logprob: float
    """Under the distribution sampled from; of a greedy token, under the softmax at temperature 1."""
    finish_reason: FinishReason | None
    """Why the answer ends here; None while it goes on."""


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
