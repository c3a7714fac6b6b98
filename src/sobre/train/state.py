"""The saved state of a stage: everything needed to go on bit for bit.

A state is a folder step-NNNNNNNN with the weights and the optimizer's tensors, each by its name, and a small JSON of
counters. It is written beside its place and moved there whole, so that a kill leaves either the old state or the new
one. Where every process holds everything, the first writes two safetensors files; a divided model is written by all
its processes at once (torch's distributed checkpoint). Either is read into any number of processes and any layout.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from sobre.errors import CheckpointError, RunError
from sobre.models.decoder import Decoder
from sobre.optim.optimizer import Optimizer
from sobre.parallel.division import Division, here
from sobre.runtime.processes import Processes

_DRAFT = ".part"
_PARTS = ".metadata"
"""The index of a distributed checkpoint."""


def save_state(
    folder: Path,
    step: int,
    model: Decoder,
    optimizer: Optimizer,
    meta: dict[str, Any],
    *,
    keep: int,
    division: Division | None = None,
    processes: Processes | None = None,
) -> None:
    """Write the state after `step` steps; then remove all but the `keep` newest. Every process calls it."""
    processes = processes or Processes()
    target = folder / f"step-{step:08d}"
    draft = target.with_suffix(_DRAFT)
    what = f"the state of step {step} could not be written to {folder}"
    processes.decide(lambda: _clear(draft, what))
    meta = {"step": step, **meta}
    if division is None or division.is_whole:
        processes.decide(lambda: _write_whole(draft, model, optimizer, what))
    else:
        meta["checksums"] = _write_parts(draft, _views(model, optimizer, division), processes, what)
    processes.decide(lambda: _finish(draft, target, meta, what))
    processes.decide(lambda: _rotate(folder, keep))


def saved_steps(folder: Path) -> list[int]:
    """Steps that have a whole state, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if path.suffix != _DRAFT)


def load_state(
    folder: Path,
    model: Decoder,
    optimizer: Optimizer,
    *,
    division: Division | None = None,
    processes: Processes | None = None,
) -> dict[str, Any] | None:
    """Fill model and optimizer from the newest state and return its meta; None when there is no state."""
    processes = processes or Processes()
    steps = processes.decide(lambda: saved_steps(folder))
    if not steps:
        return None
    source = folder / f"step-{steps[-1]:08d}"
    try:
        meta: dict[str, Any] = json.loads((source / "meta.json").read_text())
        if (source / _PARTS).is_file():
            _verify(source, meta["checksums"], processes)
            state = _read_parts(source, model, optimizer, division)
        else:
            state = _read_whole(source, division)
        _fill(model, optimizer, state)
    except (OSError, ValueError, KeyError, SafetensorError, CheckpointException) as error:
        raise CheckpointError(f"{source} cannot be read: {error}; remove it to go on from the state before") from error
    return meta


def _clear(draft: Path, what: str) -> None:
    shutil.rmtree(draft, ignore_errors=True)
    _on_disk(lambda: draft.mkdir(parents=True), what)


def _write_whole(draft: Path, model: Decoder, optimizer: Optimizer, what: str) -> None:
    def write() -> None:
        save_file(_clean(model.state_dict()), draft / "model.safetensors")
        save_file(_clean(optimizer.state_dict()), draft / "optimizer.safetensors")

    _on_disk(write, what)


def _write_parts(draft: Path, views: dict[str, Tensor], processes: Processes, what: str) -> dict[str, int]:
    """Every process writes what it holds; returns the checksum of each file."""
    try:
        dcp.save(views, storage_writer=dcp.FileSystemWriter(draft), process_group=processes.control_group)
    except (OSError, CheckpointException) as error:
        raise RunError(f"{what}: {error}") from error
    mine = {path.name: _checksum(path) for path in draft.glob(f"__{processes.rank}_*")}
    return {name: value for part in processes.gather(mine) for name, value in part.items()}


def _finish(draft: Path, target: Path, meta: dict[str, Any], what: str) -> None:
    def finish() -> None:
        (draft / "meta.json").write_text(json.dumps(meta))
        for file in draft.iterdir():
            _sync(file)
        if target.exists():
            shutil.rmtree(target)
        os.rename(draft, target)
        _sync(target.parent)

    _on_disk(finish, what)


def _rotate(folder: Path, keep: int) -> None:
    """Only once a newer state is whole; what a kill left half written goes too."""
    old = [folder / f"step-{step:08d}" for step in saved_steps(folder)[:-keep]]
    for path in [*old, *folder.glob(f"step-*{_DRAFT}")]:
        shutil.rmtree(path, ignore_errors=True)


def _on_disk(write: Callable[[], None], what: str) -> None:
    try:
        write()
    except OSError as error:
        raise RunError(f"{what}: {error.strerror or error}") from error


def _parts(model: Decoder, optimizer: Optimizer) -> dict[str, Tensor]:
    """Every tensor of the state that is in this process, under "model/NAME" or "optimizer/QUANTITY/NAME"."""
    weights = {f"model/{name}": optimizer.here.get(name, tensor) for name, tensor in model.state_dict().items()}
    return {**weights, **{f"optimizer/{key}": tensor for key, tensor in optimizer.state_dict().items()}}


def _views(model: Decoder, optimizer: Optimizer, division: Division) -> dict[str, Tensor]:
    """The same tensors, those of divided parameters as parts of a whole."""
    parts = {key: tensor.detach() for key, tensor in _parts(model, optimizer).items()}
    return {key: division.view(_parameter(key), tensor) for key, tensor in parts.items()}


def _parameter(key: str) -> str:
    return key.split("/")[-1]


def _read_parts(source: Path, model: Decoder, optimizer: Optimizer, division: Division | None) -> dict[str, Tensor]:
    """What this process needs of a state that was written in parts."""
    reader = dcp.FileSystemReader(source)
    places: dict[str, Tensor] = {}
    likes = {**model.state_dict(), **optimizer.here}
    for key in reader.read_metadata().state_dict_metadata:
        name = _parameter(key)
        if name not in likes:
            raise ValueError(f"it holds {key}, which the model has not")
        is_counter = key.startswith("optimizer/step/")
        part = torch.empty(()) if is_counter else torch.empty_like(likes[name], requires_grad=False)
        places[key] = part if division is None else division.view(name, part)
    dcp.load(places, storage_reader=reader, no_dist=not dist.is_initialized())
    return {key: here(tensor) for key, tensor in places.items()}


def _read_whole(source: Path, division: Division | None) -> dict[str, Tensor]:
    """What this process needs of a state that was written whole: one tensor after the other, cut as they come."""
    state = {}
    for kind in ("model", "optimizer"):
        with safe_open(source / f"{kind}.safetensors", "pt") as file:
            for name in file.keys():
                whole = file.get_tensor(name)
                state[f"{kind}/{name}"] = whole if division is None else division.cut(_parameter(name), whole)
    return state


def _fill(model: Decoder, optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    kinds: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    for key, tensor in state.items():
        kind, _, name = key.partition("/")
        kinds[kind][name] = tensor
    places = model.state_dict()
    if places.keys() != kinds["model"].keys():
        raise ValueError(f"its weights are not the model's: {sorted(places.keys() ^ kinds['model'].keys())[:3]}")
    with torch.no_grad():
        for name, place in places.items():
            optimizer.here.get(name, place).copy_(kinds["model"][name])
    optimizer.load_state_dict(kinds["optimizer"])


def _verify(source: Path, checksums: Mapping[str, int], processes: Processes) -> None:
    """Each process reads its share of the files; what one finds wrong is an error in all."""
    mine = processes.share(sorted(checksums))
    wrong = [name for name in mine if not (source / name).is_file() or _checksum(source / name) != checksums[name]]
    found = [name for part in processes.gather(wrong) for name in part]
    if found:
        raise ValueError(f"{', '.join(found)} is not what was written (checksum)")


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _clean(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
