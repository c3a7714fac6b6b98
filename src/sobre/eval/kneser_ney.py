"""What counting alone achieves: an interpolated n-gram with modified Kneser-Ney smoothing.

Chen and Goodman 1999 (Computer Speech & Language 13, 359-394), section 3. The unit is any id below `vocab_size`: bytes
or the tokens of a model, so that a model stands beside a baseline that reads what it reads. Each document begins after
`order - 1` boundary ids and ends with one, which is predicted like any other id: no document end is free.

Differences: n-grams that begin at a document's start have one left neighbour, the boundary, where KenLM keeps their raw
counts (a few per document); where counts of counts give no discounts, these are 0.5, 1.0 and 1.5.

An n-gram is one 64-bit number, its ids as digits in base vocab_size + 1: contexts are then runs in the sorted list, a
suffix is a remainder, and everything is sorting. That bounds the order by the vocabulary: 5 up to 7,130 ids, 4 up to
65,534; `order_that_fits` says which. At its peak, counting holds about 60 bytes for each token of the text.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sobre.errors import ConfigError

Keys = NDArray[np.uint64]
Ids = Sequence[int] | NDArray[np.integer]
CHUNK = 1 << 23
"""Positions counted at a time: bounds the memory whatever the length of the text."""
FALLBACK = np.array([0.0, 0.5, 1.0, 1.5])
"""Discounts of an n-gram seen 0, 1, 2, 3 or more times where the text is too small or too even to estimate them."""


def order_that_fits(vocab_size: int, wanted: int = 5) -> int:
    """The longest n-gram, at most `wanted`, whose ids fit one 64-bit number."""
    return max(n for n in range(1, wanted + 1) if (vocab_size + 1) ** n <= 2**64)


@dataclass(frozen=True)
class _Level:
    """All n-grams of one order: sorted keys and discounted counts; contexts with their totals and left-over mass."""

    keys: Keys
    discounted: NDArray[np.float64]
    contexts: Keys
    total: NDArray[np.float64]
    left_over: NDArray[np.float64]


class KneserNey:
    """A trained n-gram. `train` counts, `bits` scores."""

    def __init__(self, levels: list[_Level], vocab_size: int) -> None:
        self.levels = levels
        """Of order 1, 2, ..."""
        self.vocab_size = vocab_size

    @property
    def order(self) -> int:
        return len(self.levels)

    @classmethod
    def train(cls, documents: Iterable[Ids], vocab_size: int, order: int = 5) -> "KneserNey":
        """Count the n-grams of `documents`."""
        if order_that_fits(vocab_size, order) < order:
            raise ConfigError(
                f"{order}-grams of {vocab_size:,} ids do not fit 64 bits; "
                f"the longest that fit: {order_that_fits(vocab_size, order)}"
            )
        keys, counts = _count(documents, vocab_size, order)
        levels = [_level(keys, counts, vocab_size + 1)]
        for n in range(order - 1, 0, -1):
            # Kneser-Ney: a shorter n-gram counts as often as it has different left neighbours.
            keys, counts = np.unique(keys % np.uint64((vocab_size + 1) ** n), return_counts=True)
            levels.insert(0, _level(keys, counts, vocab_size + 1))
        return cls(levels, vocab_size)

    def bits(self, documents: Iterable[Ids]) -> float:
        """Summed -log2 p of every id and of every document's end."""
        ngrams = _ngrams(documents, self.vocab_size, self.order)
        return sum(float(-np.log2(self._probabilities(keys)).sum()) for keys in ngrams)

    def probability(self, context: Ids, token: int) -> float:
        """p(token | a document that has begun with `context`); token vocab_size means that it ends here."""
        ids = np.concatenate([np.asarray(context, dtype=np.uint64), np.asarray([token], dtype=np.uint64)])
        padded = np.concatenate([np.full(self.order - 1, self.vocab_size, dtype=np.uint64), ids])[-self.order :]
        return float(self._probabilities(_pack(padded, self.vocab_size + 1, self.order))[0])

    def _probabilities(self, keys: Keys) -> NDArray[np.float64]:
        base = np.uint64(self.vocab_size + 1)
        p = np.full(len(keys), 1 / float(base))
        for n, level in enumerate(self.levels, start=1):
            ngrams = keys if n == self.order else keys % base ** np.uint64(n)
            spot, seen = _find(level.contexts, ngrams // base)
            total, left_over = level.total[spot], level.left_over[spot]
            here, known = _find(level.keys, ngrams)
            count = np.where(known, level.discounted[here], 0.0)
            p = np.where(seen, (count + left_over * p) / total, p)
        return p


def _find(sorted_keys: Keys, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    spot = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return spot, sorted_keys[spot] == keys


def _pack(ids: NDArray[np.uint64], base: int, order: int) -> Keys:
    """The n-gram that ends at each position from order - 1 on."""
    n = len(ids) - order + 1
    keys = np.zeros(n, dtype=np.uint64)
    for i in range(order):
        keys *= np.uint64(base)
        keys += ids[i : i + n]
    return keys


def _ngrams(documents: Iterable[Ids], vocab_size: int, order: int) -> Iterator[Keys]:
    """Keys of all n-grams of the padded documents, about CHUNK at a time."""
    pad = np.full(order - 1, vocab_size, dtype=np.uint64)
    end = np.full(1, vocab_size, dtype=np.uint64)
    held: list[Keys] = []
    n_held = 0
    for ids in documents:
        body = np.asarray(ids, dtype=np.uint64)
        if body.size and int(body.max()) >= vocab_size:
            raise ConfigError(f"id {int(body.max())} in the text is not below vocab_size={vocab_size}")
        held.append(_pack(np.concatenate([pad, body, end]), vocab_size + 1, order))
        n_held += len(held[-1])
        if n_held >= CHUNK:
            yield np.concatenate(held)
            held, n_held = [], 0
    if held:
        yield np.concatenate(held)


def _count(documents: Iterable[Ids], vocab_size: int, order: int) -> tuple[Keys, NDArray[np.int64]]:
    """Sorted different n-grams and how often each occurs."""
    parts = [np.unique(keys, return_counts=True) for keys in _ngrams(documents, vocab_size, order)]
    if not parts:
        raise ConfigError("no text to count n-grams of")
    if len(parts) == 1:
        return parts[0]
    keys, counts = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    by_key = np.argsort(keys)
    keys, counts = keys[by_key], counts[by_key]
    firsts = _firsts(keys)
    return keys[firsts], np.add.reduceat(counts, firsts)


def _firsts(sorted_keys: Keys) -> NDArray[np.intp]:
    """Where each run of equal keys begins."""
    return np.flatnonzero(np.r_[True, sorted_keys[1:] != sorted_keys[:-1]])


def _discounts(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """D of an n-gram seen 0, 1, 2, 3 or more times (Chen and Goodman 1999, eq. 17)."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    # of 0 and less nothing would be left for what was never seen; beyond the count p would be negative
    return found if all(0 < found[c] <= c for c in (1, 2, 3)) else FALLBACK


def _level(keys: Keys, counts: NDArray[np.int64], base: int) -> _Level:
    discount = _discounts(counts)[np.minimum(counts, 3)]
    contexts = keys // np.uint64(base)
    firsts = _firsts(contexts)
    return _Level(
        keys=keys,
        discounted=counts - discount,
        contexts=contexts[firsts],
        total=np.add.reduceat(counts, firsts).astype(np.float64),
        left_over=np.add.reduceat(discount, firsts),
    )
