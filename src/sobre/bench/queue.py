"""A queue of cells: long pieces of work, each done once and kept as one file, resumable at any moment.

    FOLDER/COMMIT/cells/ID.json    a finished cell: by what code, on what machine, config, figures
    FOLDER/COMMIT/runs/ID/         where it works; a leftover of a kill is removed and the cell begun anew
    FOLDER/COMMIT/lock             held while a queue works here

The folder is named after the source, so cells of different commits never meet. Should the source change under a
working queue, it stops: the cell at hand belongs to neither. (Work in a clone of its own when the source moves.)
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sobre.bench.result import Result, Source, this_source
from sobre.bench.timing import Say
from sobre.errors import RunError
from sobre.runtime.files import write_json

Document = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One contestant in one round, with everything that decides what it does."""

    contestant: str
    round: int
    settings: dict[str, Any]

    @property
    def id(self) -> str:
        """Name of its files; other settings make another cell."""
        digest = hashlib.blake2b(json.dumps(self.settings, sort_keys=True).encode(), digest_size=4).hexdigest()
        return f"{self.contestant.replace(' ', '-')}-{self.round}-{digest}"


Work = Callable[[Cell, Path], Mapping[str, Any]]
"""Does a cell in a folder of its own; returns its figures."""


def interleaved(by_contestant: Mapping[str, Sequence[Cell]]) -> list[Cell]:
    """Round after round, every contestant once in each; who begins changes from round to round."""
    names = list(by_contestant)
    cells = []
    for index in range(max(map(len, by_contestant.values()))):
        first = index % len(names)
        turn = names[first:] + names[:first]
        cells += [by_contestant[name][index] for name in turn if index < len(by_contestant[name])]
    return cells


class Queue:
    """The cells of one source in one folder; use it as a context manager."""

    def __init__(
        self, folder: Path, name: str, say: Say, *, max_cells: int = 0, look: Callable[[], Source] = this_source
    ) -> None:
        self.name, self.say, self._look = name, say, look
        self.source = look()
        self.folder = folder / self.source.short
        self._left = max_cells or float("inf")

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise RunError(f"another queue is working in {self.folder}; it does these cells already") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._lock)

    def run(self, cells: Sequence[Cell], work: Work) -> list[Document]:
        """Do what is not done, in this order; return the documents of all finished cells of `cells`, in this order."""
        for index, cell in enumerate(cells):
            if self.finished(cell) is not None:
                continue
            if self._left < 1:
                break
            self._left -= 1
            self.say(f"cell {index + 1} of {len(cells)}: {cell.id}")
            self._do(cell, work)
        return [document for cell in cells if (document := self.finished(cell)) is not None]

    def finished(self, cell: Cell) -> Document | None:
        """The cell's file, if it is done. A file of other source or settings in this place is an error."""
        path = self._path(cell)
        if not path.is_file():
            return None
        document: Document = json.loads(path.read_text(encoding="utf-8"))
        made_by = Source(document["commit"], document["dirty"], document["digest"])
        if made_by != self.source or document["settings"] != json.loads(json.dumps(cell.settings)):
            raise RunError(
                f"{path} is of source {made_by.short} and not of {self.source.short}, or of other settings;"
                " cells of different sources are never averaged: move it away"
            )
        return document

    def _do(self, cell: Cell, work: Work) -> None:
        place = self.folder / "runs" / cell.id
        if place.exists():
            shutil.rmtree(place)  # of a cell that was killed: its seconds would not be comparable
        place.mkdir(parents=True)
        self._same_source("before the cell began")
        figures = dict(work(cell, place))
        self._same_source(f"while cell {cell.id} ran; it is not kept")
        body = {"cell": {"id": cell.id, "contestant": cell.contestant, "round": cell.round}, "figures": figures}
        result = Result(self.name, "cell", cell.settings, None, [], body)
        self._path(cell).parent.mkdir(exist_ok=True)
        write_json(self._path(cell), result.document(self.source))

    def _same_source(self, when: str) -> None:
        now = self._look()
        if now != self.source:
            raise RunError(
                f"the source changed from {self.source.short} to {now.short} {when}; finished cells are kept."
                " Start the queue again for the new source, or let it work in a clone that nobody edits"
            )

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.id}.json"


def means(documents: Sequence[Document]) -> dict[str, dict[str, Any]]:
    """Per contestant and figure: mean, lowest, highest and number of runs. One source only."""
    sources = {(document["commit"], document["digest"]) for document in documents}
    if len(sources) > 1:
        raise RunError(f"cells of {len(sources)} sources cannot be averaged: {sorted(map(str, sources))}")
    found: dict[str, dict[str, Any]] = {}
    for contestant in dict.fromkeys(document["cell"]["contestant"] for document in documents):
        runs = [d["figures"] for d in documents if d["cell"]["contestant"] == contestant]
        names = dict.fromkeys(name for run in runs for name, value in run.items() if isinstance(value, int | float))
        found[contestant] = {}
        for name in names:
            values = [run[name] for run in runs if run.get(name) is not None]
            found[contestant][name] = {
                "mean": sum(values) / len(values),
                "lowest": min(values),
                "highest": max(values),
                "n": len(values),
            }
    return found


def target(what: str, value: float | None, sign: str, limit: float) -> dict[str, Any]:
    """A target beside what was found; `reached` is None when nothing was found."""
    holds = {">=": lambda v: v >= limit, "<=": lambda v: v <= limit, "<": lambda v: v < limit, ">": lambda v: v > limit}
    return {
        "what": what,
        "sign": sign,
        "limit": limit,
        "value": value,
        "reached": None if value is None else bool(holds[sign](value)),
    }
