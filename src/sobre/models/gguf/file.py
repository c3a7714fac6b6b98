"""The GGUF file: fields, a list of tensors, their bytes (ggml's docs/gguf.md, version 3).

Little-endian throughout. A tensor's shape is written innermost first; its bytes begin at a multiple of 32. q8_0 stores
32 neighbours of a row as a float16 scale and 32 signed bytes, rounded half away from zero, as ggml does.

We write the format ourselves: it is this page, and the `gguf` package would bring four others to every installation.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import torch
from torch import Tensor

from sobre.errors import CheckpointError

Type = Literal["f32", "f16", "q8_0"]
Value = bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float]
TYPE_IDS: dict[Type, int] = {"f32": 0, "f16": 1, "q8_0": 8}
BLOCK = 32
"""Numbers that share a scale in q8_0."""
ALIGNMENT = 32
VERSION = 3
CHUNK_NUMBERS = 1 << 20
"""About as many numbers are encoded at a time."""
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
"""Kinds of values."""


@dataclass(frozen=True)
class Entry:
    """A tensor of the file; its numbers are made when they are written."""

    name: str
    shape: tuple[int, ...]
    type: Type
    make: Callable[[], Tensor]

    @property
    def size_bytes(self) -> int:
        numbers = 1
        for length in self.shape:
            numbers *= length
        return {"f32": 4 * numbers, "f16": 2 * numbers, "q8_0": numbers // BLOCK * (BLOCK + 2)}[self.type]


def write(
    path: Path, fields: Mapping[str, Value], entries: Sequence[Entry], progress: Callable[[int, int], None] | None
) -> None:
    """Write the file whole: under another name first, so that a half-written one never bears its own."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream:
            _write_all(stream, fields, entries, progress or (lambda done, total: None))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_all(
    stream: BinaryIO, fields: Mapping[str, Value], entries: Sequence[Entry], progress: Callable[[int, int], None]
) -> None:
    stream.write(b"GGUF" + struct.pack("<IQQ", VERSION, len(entries), len(fields)))
    for key, value in fields.items():
        stream.write(_string(key) + _value(value))
    offset = 0
    for entry in entries:
        shape = struct.pack(f"<{len(entry.shape)}Q", *reversed(entry.shape))
        stream.write(_string(entry.name) + struct.pack("<I", len(entry.shape)) + shape)
        stream.write(struct.pack("<IQ", TYPE_IDS[entry.type], offset))
        offset += entry.size_bytes + -entry.size_bytes % ALIGNMENT
    done, total = 0, sum(entry.size_bytes for entry in entries)
    for entry in entries:
        stream.write(bytes(-stream.tell() % ALIGNMENT))
        _write_numbers(stream, entry)
        done += entry.size_bytes
        progress(done, total)
    stream.write(bytes(-stream.tell() % ALIGNMENT))


def q8_0(rows: Tensor) -> Tensor:
    """Bytes of rows whose length is a multiple of BLOCK: float16 scale, then 32 int8, for every block."""
    blocks = rows.float().reshape(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    scaled = blocks * torch.where(scale == 0, 0.0, 1 / scale)
    codes = (scaled.abs() + 0.5).floor() * scaled.sign()
    return torch.cat([scale.half().view(torch.uint8), codes.to(torch.int8).view(torch.uint8)], 1)


def _write_numbers(stream: BinaryIO, entry: Entry) -> None:
    numbers = entry.make().detach().cpu()
    assert tuple(numbers.shape) == entry.shape, f"{entry.name}: {tuple(numbers.shape)} is not {entry.shape}"
    rows = numbers.reshape(-1, numbers.shape[-1])
    for some in rows.split(max(1, CHUNK_NUMBERS // rows.shape[1])):
        stream.write(_encoded(entry, some.float()).contiguous().view(torch.uint8).numpy().tobytes())


def _encoded(entry: Entry, rows: Tensor) -> Tensor:
    if not rows.isfinite().all():
        raise CheckpointError(f"{entry.name} holds numbers that are infinite or none")
    if entry.type == "f32":
        return rows
    if entry.type == "q8_0":
        return q8_0(rows)
    halves = rows.half()
    if not halves.isfinite().all():
        raise CheckpointError(f"{entry.name} holds {rows.abs().max():.3g}, beyond float16's 65,504; take q8_0 or f32")
    return halves


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    """A field's value with its kind before it: whole numbers are uint32 alone and int32 in arrays, as they are read."""
    match value:
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case int():
            return struct.pack("<II", _UINT32, value)
        case float():
            return struct.pack("<If", _FLOAT32, value)
        case str():
            return struct.pack("<I", _STRING) + _string(value)
    kind = _STRING if isinstance(value[0], str) else _INT32 if isinstance(value[0], int) else _FLOAT32
    head = struct.pack("<IIQ", _ARRAY, kind, len(value))
    if kind == _STRING:
        return head + b"".join(_string(str(item)) for item in value)
    return head + struct.pack(f"<{len(value)}{'i' if kind == _INT32 else 'f'}", *value)
