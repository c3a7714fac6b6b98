"""Bits per byte of held-out text: what a model that had to send the text would pay, whatever its tokenizer.

The sum of -log2 p over all tokens of a document, its end included, over the UTF-8 bytes of its text. No byte is skipped
and every token is scored exactly once. The first token is predicted from `start_id`, the id that stands before a
document in training. A document longer than a window is read in windows of `window` tokens; each begins with the last
`overlap` share of the one before, read again as context and not scored again, so that no token but those of the first
window has less than that context.

Shapes: N tokens of a batch of windows.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from sobre.models.cache import BlockTables, PagedCache
from sobre.models.config import BLOCK
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput
from sobre.runtime.device import carried
from sobre.tokenizer.tokenizer import Tokenizer

BATCH_TOKENS = 4096
"""Tokens in one forward pass: their logits are held at once."""
OVERLAP = 0.25
"""Share of a window that is read again as context of the next."""


ALL = "all"
"""All sources together; a source of this name has no score of its own."""


class Text(Protocol):
    """What is needed of a document."""

    @property
    def text(self) -> str: ...
    @property
    def source(self) -> str: ...


T = TypeVar("T", bound=Text)


@dataclass(frozen=True)
class Bits:
    """The score of the documents of one source, or of all."""

    bits: float
    n_bytes: int
    n_tokens: int
    """Ends of documents included."""
    n_documents: int
    n_read: int
    """Tokens that went through the model: those read again as context count again."""

    @property
    def per_byte(self) -> float:
        return self.bits / self.n_bytes if self.n_bytes else math.inf

    def __add__(self, other: "Bits") -> "Bits":
        return Bits(
            self.bits + other.bits,
            self.n_bytes + other.n_bytes,
            self.n_tokens + other.n_tokens,
            self.n_documents + other.n_documents,
            self.n_read + other.n_read,
        )

    def to_dict(self) -> dict[str, float | int]:
        return {
            "value": self.per_byte,
            "bits": self.bits,
            "bytes": self.n_bytes,
            "tokens": self.n_tokens,
            "documents": self.n_documents,
        }


@dataclass(frozen=True)
class Window:
    """A stretch of one document: `ids` are read, and the last `n_scored` of `targets` are scored."""

    document: int
    ids: Sequence[int]
    targets: Sequence[int]
    n_scored: int


def windows(ids: Sequence[int], document: int, *, start_id: int, window: int, overlap: float) -> Iterator[Window]:
    """Cut one document, its end included, into windows that score each of its tokens once."""
    inputs = [start_id, *ids[:-1]]
    kept = int(window * overlap)
    scored = 0
    while scored < len(ids):
        first = max(0, scored - kept)
        stop = min(len(ids), first + window)
        yield Window(document, inputs[first:stop], ids[first:stop], stop - scored)
        scored = stop


def all_windows(ids: Sequence[Sequence[int]], *, start_id: int, window: int, overlap: float = OVERLAP) -> list[Window]:
    """The windows of all documents, one document after the other."""
    return [w for i, x in enumerate(ids) for w in windows(x, i, start_id=start_id, window=window, overlap=overlap)]


@torch.inference_mode()
def bits_per_byte(
    model: Decoder,
    tokenizer: Tokenizer,
    documents: Iterable[Text],
    *,
    window: int,
    overlap: float = OVERLAP,
    start_id: int | None = None,
    per_source: int = 0,
    cache: type[PagedCache] | None = None,
) -> dict[str, Bits]:
    """Score documents by source, ALL being their sum. start_id None means the end of the document before;
    per_source > 0 takes only the first so many of each source; `cache` is what attention's entries go through."""
    chosen = first_of_each(documents, per_source)
    start = tokenizer.eos_id if start_id is None else start_id
    ids = encoded(tokenizer, chosen)
    cut = all_windows(ids, start_id=start, window=window, overlap=overlap)
    bits, n_read = [0.0] * len(chosen), [0] * len(chosen)
    for batch in batches(cut):
        for piece, value in zip(batch, _score(model, batch, cache), strict=True):
            bits[piece.document] += value
            n_read[piece.document] += len(piece.ids)
    scores: dict[str, Bits] = {}
    for document, tokens, value, read in zip(chosen, ids, bits, n_read, strict=True):
        one = Bits(value, len(document.text.encode()), len(tokens), 1, read)
        for name in dict.fromkeys((document.source, ALL)):
            scores[name] = scores[name] + one if name in scores else one
    return scores


def by_source(scores: Mapping[str, Bits]) -> dict[str, Any]:
    """What `bits_per_byte` found, as JSON data: all sources together, and each under "sources"."""
    sources = {name: bits.to_dict() for name, bits in scores.items() if name != ALL}
    return {**scores[ALL].to_dict(), "sources": sources}


def tokens_read(tokenizer: Tokenizer, documents: Iterable[Text], *, window: int, overlap: float) -> int:
    """What `bits_per_byte` reads of these documents: those read again as context count again."""
    ids = encoded(tokenizer, documents)
    return sum(len(w.ids) for w in all_windows(ids, start_id=0, window=window, overlap=overlap))


def encoded(tokenizer: Tokenizer, documents: Iterable[Text]) -> list[list[int]]:
    """Tokens of each document, its end included."""
    return [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch([document.text for document in documents])]


def first_of_each(documents: Iterable[T], per_source: int) -> list[T]:
    """The first `per_source` documents of each source, in the order given; 0 takes all."""
    taken: dict[str, int] = {}
    chosen = []
    for document in documents:
        taken[document.source] = taken.get(document.source, 0) + 1
        if not per_source or taken[document.source] <= per_source:
            chosen.append(document)
    return chosen


def batches(cut: Sequence[Window]) -> Iterator[list[Window]]:
    """Windows of like length together: padding inside attention costs nothing then."""
    batch: list[Window] = []
    for piece in sorted(cut, key=lambda w: len(w.ids)):
        if batch and (len(batch) + 1) * len(piece.ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _score(model: Decoder, batch: list[Window], cache: type[PagedCache] | None) -> list[float]:
    """Bits of each window's scored tokens."""
    device = next(model.parameters()).device
    targets_N = carried(torch.tensor([i for piece in batch for i in piece.targets]), device)
    nll_N = torch.nn.functional.cross_entropy(logits_of(model, batch, cache), targets_N, reduction="none")
    pieces: tuple[Tensor, ...] = nll_N.cpu().split([len(piece.ids) for piece in batch])
    return [
        float(nll[len(nll) - piece.n_scored :].double().sum()) / math.log(2)
        for piece, nll in zip(batch, pieces, strict=True)
    ]


def logits_of(model: Decoder, batch: Sequence[Window], cache: type[PagedCache] | None) -> Tensor:
    """Logits after every token of these windows, one after the other, in float32: N x vocabulary."""
    device = next(model.parameters()).device
    tokens_N = carried(torch.tensor([i for piece in batch for i in piece.ids]), device)
    lengths = tuple(len(piece.ids) for piece in batch)
    step = StepInput(tokens_N, lengths=lengths, slots=tuple(range(len(lengths))))
    hidden_ND = model(step, None if cache is None else _room(model, lengths, device, cache)).hidden_ND
    return model.logits(hidden_ND).float()


def _room(model: Decoder, lengths: Sequence[int], device: torch.device, kind: type[PagedCache]) -> PagedCache:
    """A cache that holds these sequences, one after the other."""
    tables, n_blocks = BlockTables(len(lengths), max(lengths), device), 0
    for slot, length in enumerate(lengths):
        blocks = range(n_blocks, n_blocks + -(-length // BLOCK))
        tables.place(slot, blocks)
        n_blocks += len(blocks)
    return kind(model.cfg, tables, n_blocks, model.dtype)
