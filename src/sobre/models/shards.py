"""The safetensors files of a model folder: found by the index, checked, and read tensor by tensor into place.

A file is a header (8 bytes of length, then JSON: name to dtype, shape and range of bytes) and the bytes. We read the
header ourselves, so that every claim of it is checked before a byte is trusted, and read each tensor straight to where
it belongs: no mapped pages beside the weights, no copy where the dtypes agree. Nothing is unpickled or executed.

DeepSeek-V3's release (arXiv 2412.19437, 3.3) stores matrices as FP8 with a float32 factor for every 128 x 128 block in
`NAME_scale_inv`; `read_into` multiplies them on the way, or fills a place that is FP8 itself (models/kept.py).
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from sobre.errors import CheckpointError
from sobre.kernels.fp8 import FORMAT, TILE
from sobre.kernels.kept import FP8, Blocks, multiply_into

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SCALE = "_scale_inv"
CHUNK_BYTES = 1 << 22
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Byte in the file."""

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Shards:
    """Every tensor of a folder by name. Raises CheckpointError for files that are absent, truncated, corrupt or lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored: dict[str, Stored] = {}
        files, index = _files(folder)
        for file in files:
            for name, found in header(file).items():
                if name in self.stored:
                    raise CheckpointError(
                        f"{name} lies in {self.stored[name].file.name} and in {file.name}, of {folder}"
                    )
                self.stored[name] = found
        if index is not None:
            _check_index(folder, index, self.stored)

    @property
    def size_bytes(self) -> int:
        return sum(found.size_bytes for found in self.stored.values())

    @property
    def names(self) -> list[str]:
        """Tensors of the model, without the factors of FP8 blocks."""
        return [name for name in self.stored if not self._is_scale(name)]

    def has_prefix(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.stored)

    def read_into(self, name: str, place: Tensor) -> None:
        """Fill `place`, in its own dtype."""
        found = self.stored[name]
        if found.dtype in FP8 and place.dtype not in FP8:
            multiply_into(place, self._blocks(name))
        elif found.dtype == place.dtype and place.is_contiguous() and place.device.type == "cpu":
            _read_bytes(found, place)
            if found.dtype in FP8:
                _refuse_nan(found, place)
        else:
            for part, rows in _parts(found):
                place[rows].copy_(_read(part))

    def is_kept(self, name: str) -> bool:
        """Whether a tensor lies in FP8 blocks."""
        return name in self.stored and self.stored[name].dtype in FP8

    def _blocks(self, name: str) -> Blocks:
        found, factors = self.stored[name], self.stored.get(name + SCALE)
        if factors is None:
            raise CheckpointError(f"{found.file}: {name} is FP8 without {name}{SCALE}, its factors")
        need = factors_shape(found.shape)
        if len(found.shape) != 2 or factors.shape != need:
            has = f"needs {need} factors, one for 128 x 128, and has {factors.shape}"
            raise CheckpointError(f"{found.file}: {name}, FP8 of {found.shape}, {has}")
        values = _read(found)
        _refuse_nan(found, values)
        return Blocks(values, _read(factors))

    def _is_scale(self, name: str) -> bool:
        of = name.removesuffix(SCALE)
        return of != name and of in self.stored and self.stored[of].dtype in FP8


def header(file: Path) -> dict[str, Stored]:
    """What a file says it holds. Raises CheckpointError where that cannot be true."""
    wrong = f"{file} is truncated or corrupt"
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(f"{wrong}: its header would be {length:,} bytes and the file has {size:,}")
        try:
            entries = json.loads(stream.read(length), object_pairs_hook=_each_once)
            found = {
                name: Stored(
                    file=file,
                    dtype=DTYPES[entry["dtype"]],
                    shape=tuple(map(_whole, entry["shape"])),
                    begin=8 + length + _whole(entry["data_offsets"][0]),
                )
                for name, entry in entries.items()
                if name != "__metadata__"
            }
            ends = {name: 8 + length + _whole(entries[name]["data_offsets"][1]) for name in found}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise CheckpointError(f"{wrong}: its header is not that of safetensors ({error!r})") from None
    for name, tensor in found.items():
        inside = 8 + length <= tensor.begin and ends[name] <= size
        if not inside or min(tensor.shape, default=0) < 0 or ends[name] - tensor.begin != tensor.size_bytes:
            raise CheckpointError(f"{wrong}: {name} claims bytes {tensor.begin:,} to {ends[name]:,} of {size:,}")
    reached = 8 + length
    for name in sorted(found, key=lambda name: (found[name].begin, ends[name])):
        if found[name].begin != reached:
            how = "leaves bytes out before it" if found[name].begin > reached else "overlaps the tensor before it"
            raise CheckpointError(f"{wrong}: {name} {how}, at byte {found[name].begin:,}")
        reached = ends[name]
    if reached != size:
        raise CheckpointError(f"{wrong}: {size - reached:,} bytes after its last tensor belong to none")
    return found


def _whole(value: Any) -> int:
    """A number of the header. Raises TypeError for what is no whole number."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError when it has a key twice, of which one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a name stands there twice, among {', '.join(name for name, _ in pairs[:4])}, ...")
    return found


def factors_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many factors an FP8 matrix has, along its rows and its columns; the last blocks may be cut."""
    return tuple(-(-size // TILE) for size in shape)


def _refuse_nan(found: Stored, values: Tensor) -> None:
    """E4M3 has two codes for NaN; products of blocks count on there being none."""
    if found.dtype == FORMAT:
        for part in values.detach().view(-1).view(torch.int8).split(CHUNK_BYTES // 8):
            if bool(((part == 0x7F) | (part == -1)).any()):
                raise CheckpointError(f"{found.file}: there is NaN among the FP8 numbers from byte {found.begin:,} on")


def _parts(found: Stored) -> Iterator[tuple[Stored, slice | EllipsisType]]:
    """The tensor in runs of rows of about CHUNK_BYTES, so that a change of dtype needs no second copy of it."""
    if not found.shape or not found.size_bytes:
        yield found, ...
        return
    row_bytes = found.size_bytes // found.shape[0]
    step = max(1, CHUNK_BYTES // row_bytes)
    for first in range(0, found.shape[0], step):
        shape = (min(step, found.shape[0] - first), *found.shape[1:])
        yield replace(found, shape=shape, begin=found.begin + first * row_bytes), slice(first, first + shape[0])


def _read(found: Stored) -> Tensor:
    tensor = torch.empty(found.shape, dtype=found.dtype)
    _read_bytes(found, tensor)
    return tensor


def _read_bytes(found: Stored, place: Tensor) -> None:
    if not place.numel():
        return
    flat: Any = place.detach().reshape(-1).view(torch.uint8).numpy()
    target = memoryview(flat)
    with found.file.open("rb", buffering=0) as stream:
        stream.seek(found.begin)
        done = 0
        while done < len(target):
            got = stream.readinto(target[done:])
            if not got:
                raise CheckpointError(f"{found.file} became shorter while it was read")
            done += got


def _files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files, and the index's map of tensor to file where there is one."""
    path = folder / "model.safetensors.index.json"
    if path.is_file():
        try:
            index = {str(name): str(file) for name, file in json.loads(path.read_text())["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is no index of safetensors: {error!r}") from None
        names = sorted(set(index.values()))
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise CheckpointError(f"{path} names files outside its folder: {', '.join(outside)}")
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise CheckpointError(f"{path} names files that are not there: {', '.join(absent)}")
        return [folder / name for name in names], index
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"], None
    files = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    if not files:
        pickles = [file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        hint = f"; {', '.join(pickles)} would have to be unpickled, which is never done" if pickles else ""
        raise CheckpointError(f"{folder} has no .safetensors file{hint}")
    return files, None


def _check_index(folder: Path, index: dict[str, str], stored: dict[str, Stored]) -> None:
    lies = [f"{name} is not in {file}" for name, file in index.items() if name not in stored]
    lies += [
        f"{name} is in {found.file.name}, not {index[name]}"
        for name, found in stored.items()
        if name in index and found.file.name != index[name]
    ]
    lies += [f"{name} of {found.file.name} is not in the index" for name, found in stored.items() if name not in index]
    if lies:
        more = f"; and {len(lies) - 8} more" if len(lies) > 8 else ""
        raise CheckpointError(
            f"{folder}/model.safetensors.index.json does not match its files: {'; '.join(lies[:8])}{more}"
        )
