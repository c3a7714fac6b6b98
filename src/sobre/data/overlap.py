"""Which documents hold a test problem.

A document holds a problem when it shares a run of 13 words with it (the usual rule since GPT-3), or, for problems
shorter than that, when it holds the whole problem. Words are compared without case; a Chinese or Japanese character is
a word. Runs of 13 leave punctuation out; whole short problems keep it, since `3 + 4` is not `3 * 4`. A run that several
problems share is the wording of a template and tells none of them apart, so it is not looked for.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

RUN_WORDS = 13
MIN_UNITS = 3
"""Shorter problems would be found everywhere; they are counted instead."""
_IDEOGRAPHS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[^\W{_IDEOGRAPHS}]+|[{_IDEOGRAPHS}]")
_UNIT = re.compile(rf"[^\W{_IDEOGRAPHS}]+|[{_IDEOGRAPHS}]|[^\w\s]")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class TestOverlap:
    """Look for test problems in documents."""

    def __init__(self, prompts: Sequence[str]) -> None:
        words = [_WORD.findall(prompt.casefold()) for prompt in prompts]
        short = [i for i, found in enumerate(words) if len(found) < RUN_WORDS]
        units = {i: _UNIT.findall(prompts[i].casefold()) for i in short}
        self.n_prompts = len(prompts)
        self.n_too_short = sum(len(found) < MIN_UNITS for found in units.values())
        runs = _Runs(_WORD)
        for i, found in enumerate(words):
            for start in range(len(found) - RUN_WORDS + 1):
                runs.add(found[start : start + RUN_WORDS], i)
        self.n_template_runs = runs.drop_shared()
        whole = _Runs(_UNIT)
        for i, unit in units.items():
            if len(unit) >= MIN_UNITS:
                whole.add(unit, i)
        self._tables = [table for table in (runs, whole) if table.owners]
        looked_for = {owner for table in self._tables for owners in table.owners.values() for owner in owners}
        self.not_looked_for = set(range(len(prompts))) - looked_for
        """Problems that are too short, or say nothing that no other one says (one that stands twice)."""

    def find(self, text: str) -> int | None:
        """The first problem (by number) that `text` holds, or None."""
        return min(self.find_all(text), default=None)

    def find_all(self, text: str) -> set[int]:
        """Every problem (by number) that `text` holds."""
        folded = text.casefold() if self._tables else ""
        return set().union(*(table.find(folded) for table in self._tables))


class _Runs:
    """Runs of units, and the problems that they belong to."""

    def __init__(self, unit: re.Pattern[str]) -> None:
        self._unit = unit
        self._number: dict[str, int] = {}
        self.owners: dict[tuple[int, ...], set[int]] = defaultdict(set)
        self._hashes: dict[int, np.ndarray] = {}

    def add(self, units: Sequence[str], owner: int) -> None:
        numbers = tuple(self._number.setdefault(unit, len(self._number) + 1) for unit in units)
        self.owners[numbers].add(owner)

    def drop_shared(self) -> int:
        """Forget the runs of more than one problem; return how many."""
        shared = [run for run, owners in self.owners.items() if len(owners) > 1]
        for run in shared:
            del self.owners[run]
        return len(shared)

    def find(self, folded: str) -> set[int]:
        """The owners of all runs in the text. Hashes find candidates; the numbers themselves decide."""
        if not self._hashes:
            self._hashes = self._hash_runs()
        numbers = np.array([self._number.get(unit, 0) for unit in self._unit.findall(folded)], np.uint64)
        known = np.concatenate([[0], np.cumsum(numbers > 0)])
        owners: set[int] = set()
        for length, hashes in self._hashes.items():
            starts = np.flatnonzero(known[length:] - known[:-length] == length)
            if len(starts) == 0:
                continue
            hashed = _hash([numbers[starts + i] for i in range(length)])
            nearest = hashes[np.searchsorted(hashes, hashed).clip(max=len(hashes) - 1)]
            for start in starts[nearest == hashed].tolist():
                owners |= self.owners.get(tuple(numbers[start : start + length].tolist()), set())
        return owners

    def _hash_runs(self) -> dict[int, np.ndarray]:
        """The hashes of the runs of each length, sorted."""
        by_length: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for run in self.owners:
            by_length[len(run)].append(run)
        return {length: np.sort(_hash(list(np.array(runs, np.uint64).T))) for length, runs in by_length.items()}


def _hash(columns: Sequence[np.ndarray]) -> np.ndarray:
    total = np.zeros_like(columns[0])
    for column in columns:
        total = (total + column) * _FACTOR
    return total
