"""Whole files or none: written beside their place, flushed, then renamed into it. Room on the disk is checked first."""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sobre.errors import RunError
from sobre.schemas.lines import flush, flush_folder

TEMPORARY = ".tmp"


def write_bytes(path: Path, data: bytes, *, private: bool = False) -> None:
    """Replace `path` by `data`; after a kill it holds the old bytes or the new ones, never a mixture. A `private` file
    is its owner's alone to read."""
    beside = path.with_name(path.name + TEMPORARY)
    try:
        if private:
            beside.unlink(missing_ok=True)
            beside.touch(mode=0o600, exist_ok=False)
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            flush(file.fileno())
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RunError(f"cannot write {path} ({len(data):,} bytes): {error.strerror or error}") from error
    publish(beside, path)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """A JSON document with keys in their order, readable by people. NaN and infinity are a ValueError."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def publish(beside: Path, path: Path) -> None:
    """Rename a finished file or folder into its place, and wait until the disk knows."""
    os.replace(beside, path)
    flush_folder(path.parent)


def is_disk_full(error: BaseException) -> bool:
    """Whether something could not be written for want of room; safetensors says so in words alone."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)


def ensure_space(folder: Path, need_bytes: int, what: str) -> None:
    """Refuse before writing `what` if the disk of `folder` lacks the room (a tenth is added to what is needed)."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    need = need_bytes + need_bytes // 10
    if free < need:
        raise RunError(
            f"{what} needs {need / 2**20:,.1f} MiB in {folder}, and the disk has {free / 2**20:,.1f} MiB free;"
            " make room or choose another folder with --out"
        )
