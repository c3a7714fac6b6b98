"""What an evaluation does. No torch here."""

from typing import Literal

from sobre.config.base import config
from sobre.errors import ConfigError

Thinking = Literal["auto", "on", "off"] | int
"""Whether a model thinks before it answers; a number allows at most so many tokens of thought. auto leaves it to the
model: ours think where their layout has thoughts, and a service is told nothing."""
Api = Literal["openai", "anthropic"]
Omittable = Literal["temperature", "top_p", "seed"]
LimitField = Literal["max_tokens", "max_completion_tokens"]


@config
class EvalConfig:
    """How a stage is examined: problems with verified answers, and held-out text."""

    n_problems: int = 1000
    """Problems of the fixed test mix, answered greedily."""
    max_new_tokens: int = 256
    """Longest response; one that does not end by then counts as truncated."""
    k: int = 4
    """Sampled responses per problem for majority@k and pass@k; 0 leaves both out."""
    n_sampled: int = 100
    """Problems that get k sampled responses: an even spread over the test mix."""
    temperature: float = 0.8
    """Of the sampled responses; the reported accuracy is greedy."""
    top_p: float = 0.95
    bits_window: int = 0
    """Tokens of a scoring window for bits per byte; 0 takes the length the model was trained at."""
    bits_overlap: float = 0.25
    """Share of a window that repeats the end of the last one as context (read again, never scored again)."""
    bits_documents: int = 0
    """Held-out documents scored per source, the first ones; 0 scores all."""
    ngram_order: int = 5
    """Order of the Kneser-Ney baselines; 0 leaves them out."""

    def __post_init__(self) -> None:
        for name in ("n_problems", "k", "n_sampled", "bits_window", "bits_documents", "ngram_order"):
            if getattr(self, name) < 0:
                raise ConfigError(f"eval.{name}={getattr(self, name)} must be 0 or more")
        if self.max_new_tokens < 1:
            raise ConfigError(f"eval.max_new_tokens={self.max_new_tokens} must be 1 or more")
        if not 0 <= self.bits_overlap <= 0.9:
            raise ConfigError(f"eval.bits_overlap={self.bits_overlap} must lie in 0..0.9")
        if self.k and self.temperature <= 0:
            raise ConfigError(
                f"eval.temperature={self.temperature} makes all k={self.k} samples equal; above 0, or k=0, fits"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"eval.top_p={self.top_p} must lie in (0, 1]")
