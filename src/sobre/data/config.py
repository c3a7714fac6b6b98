"""What a run reads, and what it does with what it finds. No torch here."""

from typing import Literal

from sobre.config.base import config
from sobre.errors import ConfigError


@config
class DataConfig:
    """Text and chats of a run. Nothing is ever left out in silence: the report counts and names it."""

    paths: tuple[str, ...] = ()
    """Files or folders of .txt .md .jsonl .parquet, each also as .gz or .zst; empty means generated text."""
    seq_len: int = 512
    """Tokens in a training row."""
    holdout_fraction: float = 0.02
    """Share of the documents kept for validation, chosen by a hash of their content."""
    on_bad_record: Literal["refuse", "count"] = "refuse"
    """A malformed record stops the run, or is left out, counted and named in the report."""
    remove_duplicates: bool = False
    """Leave out documents equal to an earlier one; they are counted and named either way."""
    remove_test_overlap: bool = False
    """Leave out training documents that hold a test problem; they are counted and named either way."""
    text_field: str = "text"
    """Field of a .jsonl or .parquet row that holds a document."""
    messages_field: str = "messages"
    """Field of a row that holds a chat."""
    source_field: str = "source"
    """Optional field that names where a row comes from; the file's name when missing."""
    lang_field: str = "lang"
    """Optional field that names the row's language."""
    max_record_bytes: int = 64 * 2**20
    """Longest line of a .jsonl, cell of a .parquet or whole .txt or .md file."""
    document_chars: int = 24_000
    """A longer .txt or .md file is cut at paragraph ends into documents of about this length."""
    seed: int = 0
    """Decides the order of rows and chats."""

    def __post_init__(self) -> None:
        if self.seq_len < 1:
            raise ConfigError(f"data.seq_len={self.seq_len} must be at least 1")
        if not 0 <= self.holdout_fraction < 1:
            raise ConfigError(f"data.holdout_fraction={self.holdout_fraction} must lie in 0..1, 1 excluded")
        if self.max_record_bytes < 1 or self.document_chars < 1:
            raise ConfigError("data.max_record_bytes and data.document_chars must be at least 1")
