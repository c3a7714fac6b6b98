"""Token shards: documents as ids, each ended by eos, in files of uint16 or uint32 that are mapped, not read.

index.json        sizes, dtype, eos, and a checksum (BLAKE2) of every other file; written last
documents.bin     int64, where each document ends
tokens-00000.bin  the ids
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np

from sobre.errors import DataError

INDEX, DOCUMENTS = "index.json", "documents.bin"
SHARD_TOKENS = 2**26
READ_BYTES = 2**22


class ShardWriter:
    """Write documents one after the other; `close` makes the folder whole."""

    def __init__(self, folder: Path, vocab_size: int, eos_id: int, shard_tokens: int = SHARD_TOKENS) -> None:
        if (folder / INDEX).exists():
            raise DataError(f"{folder} holds token shards already; give another folder or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._vocab_size, self._eos_id, self._shard_tokens = folder, vocab_size, eos_id, shard_tokens
        self._dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        self._waiting: list[np.ndarray] = []
        self._n_waiting = self._n_tokens = 0
        self._ends: list[int] = []
        self._files: list[dict[str, Any]] = []

    def add(self, ids: Sequence[int] | np.ndarray) -> None:
        """Append a document; eos is added here."""
        tokens = np.concatenate([np.asarray(ids, np.int64), [self._eos_id]])
        if tokens.min() < 0 or tokens.max() >= self._vocab_size:
            raise DataError(f"a document holds the id {tokens.max()}; the vocabulary ends at {self._vocab_size - 1}")
        self._waiting.append(tokens.astype(self._dtype))
        self._n_waiting += len(tokens)
        self._n_tokens += len(tokens)
        self._ends.append(self._n_tokens)
        while self._n_waiting >= self._shard_tokens:
            self._write_shard(self._shard_tokens)

    def close(self) -> None:
        """Write what is left, then the index."""
        if not self._ends:
            raise DataError(f"no document to write into {self._folder}")
        if self._n_waiting:
            self._write_shard(self._n_waiting)
        documents = _write(self._folder / DOCUMENTS, np.array(self._ends, dtype="<i8").tobytes())
        index = {
            "schema": 1,
            "dtype": self._dtype.name,
            "vocab_size": self._vocab_size,
            "eos_id": self._eos_id,
            "n_tokens": self._n_tokens,
            "n_documents": len(self._ends),
            "documents": documents,
            "shards": self._files,
        }
        _write(self._folder / (INDEX + ".new"), json.dumps(index, indent=1).encode())
        os.replace(self._folder / (INDEX + ".new"), self._folder / INDEX)

    def _write_shard(self, n: int) -> None:
        tokens = np.concatenate(self._waiting)
        self._waiting, self._n_waiting = [tokens[n:]], len(tokens) - n
        name = f"tokens-{len(self._files):05d}.bin"
        self._files.append({"n_tokens": n, **_write(self._folder / name, tokens[:n].tobytes())})


@dataclass(frozen=True)
class TokenShards:
    """Tokens of a folder, as one long row."""

    folder: Path
    n_tokens: int
    n_documents: int
    vocab_size: int
    eos_id: int
    ends: np.ndarray
    """Where each document ends, its eos included."""
    files: tuple[np.ndarray, ...]
    starts: tuple[int, ...]
    """Where each file begins in the row."""

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Map the files of `folder`, after comparing each with its checksum."""
        folder = Path(folder)
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(f"{folder} holds no complete token shards ({INDEX} is missing)") from error
        except ValueError as error:
            raise DataError(f"{folder / INDEX} is not JSON: {error}") from error
        if not isinstance(index, dict) or index.get("schema") != 1:
            raise DataError(f"{folder / INDEX} is not an index of schema 1; write the shards again")
        for entry in (index["documents"], *index["shards"]):
            _verify(folder, entry)
        sizes = [entry["n_tokens"] for entry in index["shards"]]
        return cls(
            folder=folder,
            n_tokens=index["n_tokens"],
            n_documents=index["n_documents"],
            vocab_size=index["vocab_size"],
            eos_id=index["eos_id"],
            ends=np.fromfile(folder / DOCUMENTS, dtype="<i8"),
            files=tuple(np.memmap(folder / entry["file"], index["dtype"], "r") for entry in index["shards"]),
            starts=tuple(sum(sizes[:i]) for i in range(len(sizes))),
        )

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1 of the row, as int64."""
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"tokens {start}..{stop} of {self.n_tokens}")
        parts = [
            file[max(start - first, 0) : stop - first]
            for first, file in zip(self.starts, self.files, strict=True)
            if first < stop and start < first + len(file)
        ]
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)


def _write(path: Path, data: bytes) -> dict[str, Any]:
    """Write and flush to disk; return name, size and checksum."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"file": path.name, "size_bytes": len(data), "blake2b": blake2b(data, digest_size=16).hexdigest()}


def _verify(folder: Path, entry: dict[str, Any]) -> None:
    path, digest = folder / entry["file"], blake2b(digest_size=16)
    if not path.is_file():
        raise DataError(f"{path} is missing; write the shards again")
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    if digest.hexdigest() != entry["blake2b"]:
        raise DataError(f"{path} is not as it was written (checksum differs); write the shards again")
