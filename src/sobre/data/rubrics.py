"""Questions to be graded by a rubric, from .jsonl files: {"prompt": text, "rubric": text, optional "lang"}."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sobre.data.config import DataConfig
from sobre.data.events import Events
from sobre.data.sources import jsonl_alone
from sobre.tasks.base import Problem

FITS = '{"prompt": text, "rubric": text}'


def read_rubrics(paths: Iterable[str | Path], cfg: DataConfig, events: Events) -> Iterator[Problem]:
    """The questions of `paths`; what is none is reported by file and line."""
    for where, row in jsonl_alone(paths, cfg, events, what="questions with a rubric", fits=FITS):
        missing = [name for name in ("prompt", "rubric") if not _is_text(row.get(name))]
        if missing:
            events.reject("wrong fields", where, f"{' and '.join(missing)} must be text that is not empty", FITS)
            continue
        key = hashlib.blake2b(row["prompt"].encode(), digest_size=8).hexdigest()
        data = {"rubric": row["rubric"]}
        yield Problem("general", str(row.get("lang", "en")), 1, row["prompt"], "", f"general:{key}", data)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
