"""What an engine may hold at once. No torch here."""

from typing import Literal

from sobre.config.base import config
from sobre.errors import ConfigError


@config
class EngineConfig:
    """Sizes of the engine; the cache is planned from them before the first request."""

    max_batch: int = 128
    """Requests decoded together."""
    max_len: int = 0
    """Longest prompt and answer together, in tokens; 0 takes the model's."""
    prefill_tokens: int = 4096
    """Prompt tokens computed before running requests get their next token; also the most in one forward pass."""
    cache_tokens: int = 0
    """Tokens that the cache holds, all requests together; 0 takes max_batch times the context. With fewer, requests
    wait or give way when memory is short, and lose nothing."""
    prefix_cache: bool = True
    """Find beginnings of prompts that were computed before."""
    speculate: bool = False
    """Guess tokens ahead with the model's MTP module, or from the context when it has none, and check several at
    once."""
    weights: Literal["model", "int8", "int4"] = "model"
    """The model's own, or its matrices in 8 bits (a scale per channel) or 4 (per group of 32); the rest then computes
    in bfloat16."""
    cache: Literal["model", "int8"] = "model"
    """What the cache holds: numbers of the model's dtype, or 8 bits each and a scale per token and head or latent."""
    deterministic: bool = False
    """The same bits for a request whatever runs beside it, found in the prefix cache or not, guessed ahead or not."""
    graphs: Literal["auto", "off"] = "auto"
    """Record a decode step once for each size of batch and context, and launch it as one from then on: auto is on CUDA,
    where nothing in the step asks the device (engine/static.py)."""
    return_routes: bool = False
    """Keep the experts that every token visited, for routing replay."""
    return_kept: bool = False
    """Keep the tokens that top_k, top_p and min_p left to choose from, for training on the same ones."""

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ConfigError(f"engine.max_batch={self.max_batch} must be at least 1")
        if self.max_len < 0:
            raise ConfigError(f"engine.max_len={self.max_len} must be at least 1, or 0 for the model's own")
        if self.deterministic and self.weights != "model":
            raise ConfigError(f"engine.deterministic has no fixed-shape products for engine.weights={self.weights!r}")
        if self.cache_tokens < 0:
            raise ConfigError(f"engine.cache_tokens={self.cache_tokens} must be at least 1, or 0 for all that may come")
        if self.prefill_tokens < 1:
            raise ConfigError(f"engine.prefill_tokens={self.prefill_tokens} must be at least 1")
