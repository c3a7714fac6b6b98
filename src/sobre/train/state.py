"""The saved state of a stage: everything needed to go on bit for bit.

A state is a folder step-NNNNNNNN with the weights and the optimizer's tensors, each by its name, and a small JSON of
counters. It is written beside its place and moved there whole, so that a kill leaves either the old state or the new
one.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sobre.errors import CheckpointError, RunError
from sobre.models.decoder import Decoder
from sobre.optim.optimizer import Optimizer

_DRAFT = ".part"


def save_state(
    folder: Path, step: int, model: Decoder, optimizer: Optimizer, meta: dict[str, Any], *, keep: int
) -> None:
    """Write the state after `step` steps; then remove all but the `keep` newest."""
    target = folder / f"step-{step:08d}"
    draft = target.with_suffix(_DRAFT)
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        save_file(_clean(model.state_dict()), draft / "model.safetensors")
        save_file(_clean(optimizer.state_dict()), draft / "optimizer.safetensors")
        (draft / "meta.json").write_text(json.dumps({"step": step, **meta}))
        for file in draft.iterdir():
            _sync(file)
        if target.exists():
            shutil.rmtree(target)
        os.rename(draft, target)
        _sync(folder)
    except OSError as error:
        raise RunError(
            f"the state of step {step} could not be written to {folder}: {error.strerror or error}"
        ) from error
    for old in saved_steps(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{old:08d}", ignore_errors=True)


def saved_steps(folder: Path) -> list[int]:
    """Steps that have a whole state, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if path.suffix != _DRAFT)


def load_state(folder: Path, model: Decoder, optimizer: Optimizer) -> dict[str, Any] | None:
    """Fill model and optimizer from the newest state and return its meta; None when there is no state."""
    steps = saved_steps(folder)
    if not steps:
        return None
    source = folder / f"step-{steps[-1]:08d}"
    try:
        model.load_state_dict(load_file(source / "model.safetensors"))
        optimizer.load_state_dict(load_file(source / "optimizer.safetensors"))
        meta: dict[str, Any] = json.loads((source / "meta.json").read_text())
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{source} cannot be read: {error}; remove it to go on from the state before") from error
    return meta


def _clean(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
