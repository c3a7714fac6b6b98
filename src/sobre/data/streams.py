"""Bytes of plain, gzip and zstd files, and their lines. A cut-off file is an error, never a shorter file."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

BLOCK_BYTES = 2**20
COMPRESSED_BYTES = 2**16


class BrokenStream(Exception):
    """The file cannot be read, or its compressed data ends early or is damaged."""


class TooLong(Exception):
    """More bytes than a record may have."""


def blocks(path: Path) -> Iterator[bytes]:
    """The uncompressed bytes of a file, in blocks."""
    try:
        with path.open("rb") as file:
            match path.suffix.lower():
                case ".gz":
                    with gzip.open(file) as unzipped:
                        yield from iter(lambda: unzipped.read(BLOCK_BYTES), b"")
                case ".zst":
                    yield from _unzstd(file)
                case _:
                    yield from iter(lambda: file.read(BLOCK_BYTES), b"")
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:  # a bad gzip header is an OSError, too
        raise BrokenStream(str(error) or type(error).__name__) from error


def read_all(path: Path, limit: int) -> bytes:
    """The uncompressed file, unless it is longer than `limit`."""
    data = bytearray()
    for block in blocks(path):
        data += block
        if len(data) > limit:
            raise TooLong
    return bytes(data)


def lines(path: Path, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Line numbers (from 1) and lines without their "\\n"; None for a line longer than `limit`, which is skipped."""
    number, rest, skipping = 1, bytearray(), False
    for block in blocks(path):
        *ends, last = block.split(b"\n")
        for end in ends:
            line = None if skipping or len(rest) + len(end) > limit else bytes(rest) + end
            yield number, line
            number, rest, skipping = number + 1, bytearray(), False
        rest += b"" if skipping else last
        if len(rest) > limit:
            rest, skipping = bytearray(), True
    if rest or skipping:
        yield number, None if skipping else bytes(rest)


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    """Frame by frame, since the library's reader takes a cut-off frame for the end of the file."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    started = False
    while data := file.read(COMPRESSED_BYTES):
        while data:
            started = True
            yield frame.decompress(data)
            data = frame.unused_data
            if frame.eof:
                frame, started = zstandard.ZstdDecompressor().decompressobj(), False
            else:
                break
    if started:
        raise BrokenStream("the last zstd frame is not complete")
