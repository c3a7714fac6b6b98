"""How the tokenizer of a run is trained. No torch here."""

from sobre.config.base import config
from sobre.errors import ConfigError
from sobre.tokenizer.special import SPECIALS

SMALLEST = 256 + len(SPECIALS)
"""Every byte and every special token."""


@config
class TokenizerConfig:
    """Byte-level BPE learnt from the run's own text."""

    vocab_size: int = 4096
    """Largest vocabulary: special tokens, the 256 bytes, then merges. A text with fewer pairs to merge gives fewer."""
    sample_bytes: int = 6_000_000
    """UTF-8 bytes of text that the merges are learnt from, chosen by content hash over the whole text; 0 takes all."""
    min_frequency: int = 2
    """A pair is merged when it occurs at least this often in the sample."""

    def __post_init__(self) -> None:
        if self.vocab_size < SMALLEST:
            raise ConfigError(
                f"tokenizer.vocab_size={self.vocab_size} must be at least {SMALLEST} (the bytes and special tokens)"
            )
        if self.sample_bytes < 0:
            raise ConfigError(f"tokenizer.sample_bytes={self.sample_bytes} must be 0 (all) or more")
        if self.min_frequency < 1:
            raise ConfigError(f"tokenizer.min_frequency={self.min_frequency} must be at least 1")
