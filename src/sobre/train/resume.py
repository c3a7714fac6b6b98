"""Going on from a saved state, in whatever number of processes and layout it was written and is read.

The files of the newest state are compared with their checksums first. One that is damaged is named and passed over for
the state before it, as an unattended restart needs; when no good one is left, that is an error. What was passed over
once is renamed: should its disk give it back later, it belongs to a past that did not go on.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from sobre.errors import CheckpointError
from sobre.models.decoder import Decoder
from sobre.optim.optimizer import Optimizer
from sobre.parallel.division import Division, here
from sobre.runtime.processes import Processes
from sobre.train.state import checksum, moving, parameter_of, put_back, saved_steps, sync

PASSED_OVER = ".passed-over-"
_PARTS = ".metadata"
"""The index of a distributed checkpoint."""


def load_state(
    folder: Path,
    model: Decoder,
    optimizer: Optimizer,
    *,
    division: Division | None = None,
    processes: Processes | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any] | None:
    """Fill model and optimizer from the newest good state and return its meta; None when there is no state at all.

    `say` is told of each state that was passed over. Its folder has another name from then on, and no load returns to
    it. Raises CheckpointError when none can be read (all keep their names), or the one taken is of another model.
    """
    processes = processes or Processes()
    steps = processes.decide(lambda: _steps(folder))
    faults: dict[Path, str] = {}
    for step in reversed(steps):
        source = folder / f"step-{step:08d}"
        fault = _fault(source, processes)
        if fault is None:
            meta = _load(source, model, optimizer, division)
            for passed, why in faults.items():
                aside = processes.decide(partial(_set_aside, passed))
                say(f"{why}; its folder is {aside} from now on, and nothing reads it")
            return meta
        faults[source] = f"{source} cannot be read: {fault}"
    if faults:
        raise CheckpointError(
            "; ".join(faults.values()) + "; no state is left to go on from: remove them to begin the stage anew"
        )
    return None


def _steps(folder: Path) -> list[int]:
    put_back(folder)
    return saved_steps(folder)


def _set_aside(source: Path) -> Path:
    """Give a state that was passed over a name that is no state's; returns it."""
    number = 1 + sum(1 for _ in source.parent.glob(f"{source.name}{PASSED_OVER}*"))
    aside = source.with_name(f"{source.name}{PASSED_OVER}{number}")
    try:
        source.rename(aside)
        sync(source.parent)
    except OSError as error:
        raise CheckpointError(f"{source} was passed over and cannot be renamed to {aside}: {error.strerror}") from error
    return aside


def _fault(source: Path, processes: Processes) -> str | None:
    """What is wrong with a state's files, or None. Each process looks at its share, and all are told."""
    try:
        checksums: dict[str, int] = json.loads((source / "meta.json").read_text())["checksums"]
    except (OSError, ValueError) as error:
        return f"meta.json: {error}"
    except KeyError:
        return "meta.json has no checksums"
    wrong = []
    for name in processes.share(sorted(checksums)):
        try:
            if checksum(source / name) != checksums[name]:
                wrong.append(f"{name} is not what was written (checksum)")
        except OSError as error:
            wrong.append(f"{name}: {error.strerror}")
    found = [fault for part in processes.gather(wrong) for fault in part]
    return "; ".join(found) or None


def _load(source: Path, model: Decoder, optimizer: Optimizer, division: Division | None) -> dict[str, Any]:
    try:
        is_parts = (source / _PARTS).is_file()
        state = _read_parts(source, model, optimizer, division) if is_parts else _read_whole(source, model, division)
        _fill(model, optimizer, state)
    except (OSError, ValueError, KeyError, SafetensorError, CheckpointException) as error:
        raise CheckpointError(f"{source} does not fit this run: {error}") from error
    meta: dict[str, Any] = json.loads((source / "meta.json").read_text())
    del meta["checksums"]
    return meta


def _read_parts(source: Path, model: Decoder, optimizer: Optimizer, division: Division | None) -> dict[str, Tensor]:
    """What this process needs of a state that was written in parts."""
    reader = dcp.FileSystemReader(source)
    places: dict[str, Tensor] = {}
    likes = {**moving(model), **optimizer.here}
    for key in reader.read_metadata().state_dict_metadata:
        name = parameter_of(key)
        if division is not None and name in division.homes.keys() - likes.keys():
            continue  # of another stage
        if name not in likes:
            raise ValueError(f"it holds {key}, which the model has not")
        like = optimizer.sum_sq[name] if key.startswith("optimizer/sum_sq/") else likes[name]
        is_counter = key.startswith("optimizer/step/")
        part = torch.empty(()) if is_counter else torch.empty_like(like, requires_grad=False)
        places[key] = part if division is None else division.view(name, part)
    dcp.load(places, storage_reader=reader, no_dist=not dist.is_initialized())
    return {key: here(tensor) for key, tensor in places.items()}


def _read_whole(source: Path, model: Decoder, division: Division | None) -> dict[str, Tensor]:
    """What this process needs of a state that was written whole: one tensor after the other, cut as they come."""
    state, own = {}, moving(model)
    for kind in ("model", "optimizer"):
        with safe_open(source / f"{kind}.safetensors", "pt") as file:
            for name in file.keys():
                if division is not None and parameter_of(name) in division.homes.keys() - own.keys():
                    continue  # of another stage
                whole = file.get_tensor(name)
                state[f"{kind}/{name}"] = whole if division is None else division.cut(parameter_of(name), whole).clone()
    return state


def _fill(model: Decoder, optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    kinds: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    for key, tensor in state.items():
        kind, _, name = key.partition("/")
        kinds[kind][name] = tensor
    places = moving(model)
    if places.keys() != kinds["model"].keys():
        raise ValueError(f"its weights are not the model's: {sorted(places.keys() ^ kinds['model'].keys())[:3]}")
    with torch.no_grad():
        for name, place in places.items():
            optimizer.here.get(name, place).copy_(kinds["model"][name])
    optimizer.load_state_dict(kinds["optimizer"])
