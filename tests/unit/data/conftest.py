"""Files of every kind, and a small tokenizer."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def parquet(columns: dict[str, list]) -> bytes:
    """A table as the bytes of a .parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=3)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    texts = [f"the number {i} and the word {'ab' * (i % 7)} make a line\n" for i in range(300)]
    return Tokenizer.train(texts, TokenizerConfig(vocab_size=400))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """`write("a.txt.gz", data)`: a file, packed as its name says."""

    def _write(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PACKERS[path.suffix if path.suffix in PACKERS else ""](data))
        return path

    return _write


@pytest.fixture
def make_parquet() -> Callable[[dict[str, list]], bytes]:
    return parquet
