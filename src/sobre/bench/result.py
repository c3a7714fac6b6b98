"""The one kind of file that every benchmark writes (schemas/bench.schema.json).

A file says by what (commit, machine, settings), that the contestants do the same (check), and every single figure;
what is derived from them (medians, ratios, means) stands beside.
"""

import hashlib
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import sobre
from sobre.errors import RunError
from sobre.runtime.environment import environment, source
from sobre.runtime.files import write_json
from sobre.schemas import VERSION

FOLDER = Path("bench-results")
PEERS = ("transformers", "trl", "accelerate")


@dataclass(frozen=True)
class Source:
    """Which code ran. The digest is over the files of the package, so that two states of a dirty tree differ."""

    commit: str | None
    dirty: bool | None
    digest: str

    @property
    def short(self) -> str:
        """Names a folder: the commit, and the digest where the commit does not say everything."""
        commit = (self.commit or "wheel")[:12]
        return commit if self.commit and not self.dirty else f"{commit}-{self.digest[:8]}"


@dataclass(frozen=True)
class Result:
    """What a benchmark found."""

    name: str
    kind: Literal["timing", "cell", "summary", "quality"]
    settings: dict[str, Any]
    threads: int | None
    check: list[dict[str, Any]]
    """What was compared before anything was timed: what, value, limit."""
    body: dict[str, Any] = field(default_factory=dict)
    """timing: rounds, medians, ratios, memory; cell: cell, figures; summary: cells, means, targets; quality:
    contestants."""
    notes: tuple[str, ...] = ()

    def document(self, ran: Source | None = None) -> dict[str, Any]:
        """The file's content; `ran` is the source that the figures come from, this process's own if not given."""
        ran = ran or this_source()
        return {
            "schema": VERSION,
            "name": self.name,
            "kind": self.kind,
            "commit": ran.commit,
            "dirty": ran.dirty,
            "digest": ran.digest,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(self.threads),
            "settings": self.settings,
            "check": self.check,
            **self.body,
            "notes": list(self.notes),
        }


def checked(what: str, value: float, limit: float) -> dict[str, Any]:
    """A comparison that holds, for the file; raises RunError when it does not: what computes wrongly is not timed."""
    if not value <= limit:
        raise RunError(f"{what}: {value:.3g} exceeds {limit:.3g}; nothing was timed")
    return {"what": what, "value": value, "limit": limit}


def this_source() -> Source:
    """The source as it lies on the disk now."""
    package = Path(sobre.__file__).parent
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return Source(**source(package), digest=digest.hexdigest())


def machine(threads: int | None) -> dict[str, Any]:
    """On what it ran: the environment of a run, and the versions of the peers."""
    found = environment(threads)
    found["packages"] |= {name: _version(name) for name in PEERS}
    found["omp_num_threads"] = os.environ.get("OMP_NUM_THREADS", "")
    return {key: value for key, value in found.items() if key not in ("schema", "source")}


def save(document: dict[str, Any], out: str) -> Path:
    """Write the file to `out`, or to a new name in bench-results/."""
    if out:
        path = Path(out)
    else:
        stamp = document["date"].replace("-", "").replace(":", "").removesuffix("+0000")
        path = FOLDER / f"{document['name'].replace(' ', '-')}-{stamp}Z.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, document)
    return path


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
