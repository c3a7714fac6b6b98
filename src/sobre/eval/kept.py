"""Replies of a service, kept as they come: an evaluation that breaks off goes on without paying for them again.

A file of JSON lines, {"asked": digest of the request, "reply": what came}. A reply is taken from there where exactly
the same request is made again: same address, model, messages, sampling and place among the questions.
"""

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sobre.errors import DataError, RunError
from sobre.eval.answer import Reply
from sobre.schemas import lines


class Kept:
    """The file, open to the threads that ask."""

    def __init__(self, path: Path) -> None:
        """Read what is there; raises DataError for a file of something else."""
        self.path = path
        self._lock = threading.Lock()
        self._used: set[str] = set()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._found = {line["asked"]: Reply(**line["reply"]) for line in lines.repair(path)}
        except (OSError, KeyError, TypeError) as error:
            raise DataError(f"{path} holds no replies of an evaluation that broke off: {error!r}") from None

    def __len__(self) -> int:
        return len(self._found)

    def find(self, asked: str) -> Reply | None:
        """The reply to this request, if it is there."""
        reply = self._found.get(asked)
        if reply is not None:
            self._used.add(asked)
        return reply

    def add(self, asked: str, reply: Reply) -> None:
        """Return when the disk has it."""
        with self._lock:
            self._found[asked] = reply
            self._used.add(asked)
            try:
                lines.append(self.path, {"asked": asked, "reply": asdict(reply)})
            except OSError as error:
                raise RunError(f"cannot keep a reply in {self.path}: {error}") from None

    def close(self) -> int:
        """The result is written: remove the file, unless it holds replies to other requests; return how many."""
        others = len(self._found.keys() - self._used)
        if not others:
            self.path.unlink(missing_ok=True)
        return others


def digest(address: str, body: Mapping[str, Any], number: int) -> str:
    """Of a request; `number` tells requests apart that are the same, word for word."""
    return hashlib.sha256(json.dumps([address, body, number], sort_keys=True).encode()).hexdigest()
