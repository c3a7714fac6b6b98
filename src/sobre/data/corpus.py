"""Documents to a corpus: held-out split, duplicates and test problems counted, tokens in shards, a report.

The split is by content: a document is held out when the hash of its text falls into the fraction, so equal documents
stand on one side, whatever else is in the data and in whatever order. Chats among them are never held out. The folder
appears whole or not at all:

    train/            token shards
    held_out.jsonl    the held-out documents
    report.json       every count
"""

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

from sobre.data.config import DataConfig
from sobre.data.events import Event, Events
from sobre.data.overlap import TestOverlap
from sobre.data.shards import ShardWriter, TokenShards
from sobre.data.sources import Document
from sobre.errors import DataError
from sobre.tokenizer.tokenizer import Tokenizer

TRAIN, HELD_OUT, REPORT = "train", "held_out.jsonl", "report.json"
BATCH_CHARS = 1_000_000
"""Text that is encoded at a time."""


@dataclass(frozen=True)
class Corpus:
    """What pretraining and its evaluation read."""

    shards: TokenShards
    held_out: dict[str, list[str]]
    """Held-out texts by source."""
    report: dict[str, Any]

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open a folder that `prepare` wrote."""
        folder = Path(folder)
        if not (folder / REPORT).is_file():
            raise DataError(f"{folder} holds no complete corpus ({REPORT} is missing)")
        held_out: dict[str, list[str]] = defaultdict(list)
        for line in (folder / HELD_OUT).read_text(encoding="utf-8").split("\n"):
            if line:
                row = json.loads(line)
                held_out[row["source"]].append(row["text"])
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        return cls(TokenShards.open(folder / TRAIN), dict(held_out), report)


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document is kept for validation; decided by its text alone."""
    return int.from_bytes(_digest(text)[:8]) < fraction * 2**64


def training_texts(documents: Iterable[Document], cfg: DataConfig) -> Iterator[str]:
    """The texts that are not held out: what a tokenizer may learn from."""
    return (document.text for document in documents if not is_held_out(document.text, cfg.holdout_fraction))


def prepare(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    folder: Path | str,
    cfg: DataConfig,
    *,
    events: Events | None = None,
    test_prompts: Sequence[str] = (),
) -> Corpus:
    """Write the corpus of `documents` into `folder`. `events` is what reading them reports to."""
    folder = Path(folder)
    if folder.exists():
        raise DataError(f"{folder} exists already; open it as a corpus, or remove it to prepare it again")
    unfinished = folder.with_name(folder.name + ".unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)  # left by a run that was killed here
    unfinished.mkdir(parents=True)
    counts = _Counts(events or Events(cfg.on_bad_record), TestOverlap(test_prompts))
    writer = ShardWriter(unfinished / TRAIN, tokenizer.vocab_size, tokenizer.eos_id)
    with (unfinished / HELD_OUT).open("w", encoding="utf-8", newline="\n") as held_out:
        for batch in _batches(counts.keep(documents, tokenizer, cfg)):
            texts = [document.text for document, is_train in batch if is_train and not document.messages]
            for ids in tokenizer.encode_arrays(texts):
                writer.add(ids)
            for document, _ in batch:
                if document.messages:
                    writer.add(tokenizer.render(document.messages)[:-1])  # the layout's last token is eos
            for document, is_train in batch:
                if not is_train:
                    held_out.write(json.dumps(vars(document), ensure_ascii=False) + "\n")
        held_out.flush()
        os.fsync(held_out.fileno())
    if not counts.train:
        raise DataError(f"no document is left to train on: {json.dumps(counts.to_json(cfg), ensure_ascii=False)}")
    writer.close()
    shards = TokenShards.open(unfinished / TRAIN)
    report = counts.to_json(cfg) | {"tokens": shards.n_tokens, "vocab_size": tokenizer.vocab_size}
    (unfinished / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, folder)
    return Corpus.open(folder)


@dataclass
class _Share:
    """One side of the split."""

    documents: int = 0
    size_bytes: int = 0

    def add(self, size_bytes: int) -> None:
        self.documents += 1
        self.size_bytes += size_bytes


@dataclass
class _Counts:
    """What was met on the way."""

    events: Events
    overlap: TestOverlap
    train: dict[str, _Share] = field(default_factory=lambda: defaultdict(_Share))
    held_out: dict[str, _Share] = field(default_factory=lambda: defaultdict(_Share))
    langs: Counter[str] = field(default_factory=Counter)
    duplicates: Event = field(default_factory=Event)
    test_overlap: Event = field(default_factory=Event)

    def keep(
        self, documents: Iterable[Document], tokenizer: Tokenizer, cfg: DataConfig
    ) -> Iterator[tuple[Document, bool]]:
        """The documents that stay, and whether each is for training."""
        seen: dict[bytes, str] = {}
        for document in documents:
            is_train = bool(document.messages) or not is_held_out(document.text, cfg.holdout_fraction)
            if special := next((name for name in tokenizer.special_texts if name in document.text), None):
                self.events.note("special token spelt in the text, kept as text", f"{document.where}: {special}")
            digest = _digest(document.text)
            is_duplicate = digest in seen
            if is_duplicate:
                self.duplicates.add(f"{document.where} equals {seen[digest]}")
            seen.setdefault(digest, document.where)
            problem = self.overlap.find(document.text) if is_train else None
            if problem is not None:
                self.test_overlap.add(f"{document.where} holds test problem {problem}")
            if (is_duplicate and cfg.remove_duplicates) or (problem is not None and cfg.remove_test_overlap):
                continue
            side = self.train if is_train else self.held_out
            side[document.source].add(len(document.text.encode()))
            self.langs[document.lang or "unknown"] += 1
            yield document, is_train

    def to_json(self, cfg: DataConfig) -> dict[str, Any]:
        """The counts, for report.json."""
        sides = {
            name: {
                "documents": sum(share.documents for share in side.values()),
                "size_bytes": sum(share.size_bytes for share in side.values()),
                "by_source": {source: vars(share) for source, share in sorted(side.items())},
            }
            for name, side in (("train", self.train), ("held_out", self.held_out))
        }
        found = {
            "duplicates": vars(self.duplicates) | {"removed": cfg.remove_duplicates},
            "test_overlap": vars(self.test_overlap)
            | {
                "removed": cfg.remove_test_overlap,
                "problems": self.overlap.n_prompts,
                "problems_too_short": self.overlap.n_too_short,
                "template_runs": self.overlap.n_template_runs,
            },
        }
        return {"schema": 1, **sides, "documents_by_lang": dict(self.langs), **found, **self.events.to_json()}


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def _batches(documents: Iterable[tuple[Document, bool]]) -> Iterator[list[tuple[Document, bool]]]:
    """Lists of documents of about BATCH_CHARS in all."""
    batch: list[tuple[Document, bool]] = []
    size = 0
    for document, is_train in documents:
        batch.append((document, is_train))
        size += len(document.text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
