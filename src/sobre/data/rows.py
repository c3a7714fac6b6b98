"""Rows of .jsonl and .parquet files, with the place of each; what is no row is reported to the events."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sobre.data.config import DataConfig
from sobre.data.events import Events
from sobre.data.streams import BrokenStream, TooLong, lines, read_all

BOM = "\ufeff"
BATCH_ROWS = 256
MAX_PACKED_PARQUET_BYTES = 2**31
"""A .parquet.gz or .parquet.zst is unpacked in memory, since its index is at the end."""


def jsonl_rows(path: Path, cfg: DataConfig, events: Events) -> Iterator[tuple[str, dict[str, Any]]]:
    """One JSON object a line; lines end at "\\n" and nowhere else."""
    number = 0
    try:
        for number, line in lines(path, cfg.max_record_bytes):
            where = f"{path}:{number}"
            if line is None:
                reason = f"the line is longer than data.max_record_bytes = {cfg.max_record_bytes:,}"
                events.reject("too long", where, reason, "shorter lines, or a larger limit")
            elif not line.strip():
                events.note("blank line", where)
            elif (row := _parse(line, where, events)) is not None:
                yield where, row
    except BrokenStream as error:
        report_broken(path, f"after line {number:,}", error, events)
        return
    if number == 0:
        report_empty(path, events)


def parquet_rows(path: Path, cfg: DataConfig, events: Events) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table, with the fields that the recipe names."""
    number = 0
    try:
        table = pq.ParquetFile(_seekable(path))
        wanted = {cfg.text_field, cfg.messages_field, cfg.source_field, cfg.lang_field}
        columns = [name for name in table.schema_arrow.names if name in wanted]
        if not {cfg.text_field, cfg.messages_field} & set(columns):
            names = ", ".join(table.schema_arrow.names) or "none"
            reason = f"its {table.metadata.num_rows:,} rows have no field {cfg.text_field!r}; the fields: {names}"
            events.reject("wrong fields", str(path), reason, f"a column of text named {cfg.text_field!r}")
            return
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            for i in range(batch.num_rows):
                number += 1
                if (row := _row(batch, i, f"{path}:row {number}", events)) is not None:
                    yield f"{path}:row {number}", row
    except TooLong:
        reason = f"unpacked, it is longer than {MAX_PACKED_PARQUET_BYTES:,} bytes"
        events.reject("too long", str(path), reason, "the .parquet itself, which compresses its columns")
        return
    except (BrokenStream, pa.ArrowException, OSError) as error:
        report_broken(path, f"after row {number:,}", error, events)
        return
    if number == 0:
        report_empty(path, events)


def report_broken(path: Path, place: str, error: Exception, events: Events) -> None:
    """The file ends early, is damaged or may not be read; what came before stays."""
    cause = error.__cause__ or error
    if isinstance(cause, OSError) and cause.errno:
        reason = f"cannot be read {place}: {cause.strerror}"
    else:
        reason = f"damaged or cut off {place}: {' '.join(str(error).split())}"
    events.reject("broken file", str(path), reason, "a complete file")


def report_empty(path: Path, events: Events) -> None:
    events.reject("empty file", str(path), "the file holds no record", "a file with at least one")


def decode(data: bytes, where: str, events: Events) -> str | None:
    """UTF-8 text, its byte order mark taken off; None (and an event) when it is not UTF-8."""
    try:
        return without_bom(data.decode(), where, events)
    except UnicodeDecodeError as error:
        hint = " (it looks like UTF-16)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        reason = f"invalid UTF-8 at byte {error.start:,} (0x{data[error.start]:02x}){hint}"
        events.reject("invalid UTF-8", where, reason, "UTF-8 text")
        return None


def without_bom(text: str, where: str, events: Events) -> str:
    """`text` without a leading byte order mark, which is counted."""
    if text.startswith(BOM):
        events.note("byte order mark taken off", where)
    return text.removeprefix(BOM)


def _parse(line: bytes, where: str, events: Events) -> dict[str, Any] | None:
    text = decode(line, where, events)
    if text is None:
        return None
    try:
        row = json.loads(text, object_pairs_hook=_unique_fields)
    except (ValueError, RecursionError) as error:
        events.reject("invalid JSON", where, f"invalid JSON: {error}", "one JSON object a line")
        return None
    if not isinstance(row, dict):
        reason = f"the line holds a JSON value of type {type(row).__name__}"
        events.reject("wrong fields", where, reason, "one JSON object a line")
        return None
    return row


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field is given twice")
    return fields


def _seekable(path: Path) -> Path | io.BytesIO:
    return path if path.suffix.lower() == ".parquet" else io.BytesIO(read_all(path, MAX_PACKED_PARQUET_BYTES))


def _row(batch: pa.RecordBatch, i: int, where: str, events: Events) -> dict[str, Any] | None:
    try:
        return {name: batch.column(name)[i].as_py() for name in batch.schema.names}
    except UnicodeDecodeError as error:
        events.reject("invalid UTF-8", where, f"invalid UTF-8 at byte {error.start:,}", "UTF-8 text")
        return None
