"""Files of JSON lines that survive a kill at any byte: ledger, events and metrics are kept in them.

A line is one JSON object and its newline, written in one call. A kill can tear the last line only. Opening the file
repairs it: a last line that is whole JSON without its newline gets the newline, half a line is cut off. A broken line
anywhere else is damage that no kill can cause, and an error.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sobre.errors import RunError


def encode(record: Mapping[str, Any]) -> bytes:
    """One line of the file. NaN and infinity are no JSON, and a ValueError."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(", ", ": ")).encode() + b"\n"


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole line; a torn last line is left out and the file is not touched."""
    return [record for record, _ in _records(path)]


def repair(path: Path) -> list[dict[str, Any]]:
    """Make the file end with a whole line, and return its records. A missing file is an empty one."""
    if not path.exists():
        return []
    records = _records(path)
    whole = records[-1][1] if records else 0
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size > whole:
            file.truncate(whole)
        elif size < whole:  # the last line is whole, only its newline is missing
            file.write(b"\n")
        if size != whole:
            flush(file.fileno())
    return [record for record, _ in records]


def append(path: Path, *records: Mapping[str, Any]) -> None:
    """Append the records in one write, and return when the disk has them."""
    if not records:
        return
    is_new = not path.exists()
    with path.open("ab", buffering=0) as file:
        data = b"".join(encode(record) for record in records)
        while data:  # a raw write may take less than it was given
            data = data[file.write(data) :]
        flush(file.fileno())
    if is_new:
        flush_folder(path.parent)


def rewrite(path: Path, *records: Mapping[str, Any]) -> None:
    """Put the records in the place of the file's; after a kill it holds all the old ones or all the new ones."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        file.write(b"".join(encode(record) for record in records))
        file.flush()
        flush(file.fileno())
    os.replace(beside, path)
    flush_folder(path.parent)


def flush(descriptor: int) -> None:
    """Wait until the disk holds what was written."""
    os.fsync(descriptor)


def flush_folder(folder: Path) -> None:
    """Wait until the disk holds the folder's list of names."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _records(path: Path) -> list[tuple[dict[str, Any], int]]:
    """Each record and the size of the file up to the end of its line, newline included."""
    if not path.exists():
        return []
    found: list[tuple[dict[str, Any], int]] = []
    lines = path.read_bytes().split(b"\n")
    end = 0
    for number, line in enumerate(lines, start=1):
        end += len(line) + 1
        try:
            record = json.loads(line.decode())
        except ValueError as error:
            if number == len(lines):  # what follows the last newline: nothing, or half a line
                break
            raise RunError(
                f"{path}, line {number}: not a JSON line ({error}); the file was damaged or edited"
            ) from None
        if not isinstance(record, dict):
            if number == len(lines):
                break
            raise RunError(f"{path}, line {number}: a {type(record).__name__} where an object must stand")
        found.append((record, end))
    return found
