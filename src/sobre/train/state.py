"""The saved state of a stage: everything needed to go on bit for bit.

A state is a folder step-NNNNNNNN with the weights and the optimizer's tensors, each by its name, and a small JSON of
counters. It is written beside its place and moved there whole, so that a kill leaves either the old state or the new
one, and an older one goes only after that. The one just written never goes, whatever else lies there. Where every
process holds everything, the first writes two safetensors files; a divided model is written by all its processes at
once (torch's distributed checkpoint). Either is read into any number of processes and any layout (train/resume.py).
Frozen weights are no part of it: they are where the run began, and it begins there again.

Training waits only for a copy of the numbers. A thread of each process does all the rest: it takes them to the disk,
agrees with those of the other processes (over a group of their own), and puts the state into its place.
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from sobre.errors import RunError
from sobre.models.decoder import Decoder
from sobre.optim.optimizer import Optimizer
from sobre.parallel.division import Division
from sobre.runtime.processes import Processes

DRAFT = ".part"
OLD = ".old"
"""What was in the place of a state of the same step that is being written again."""


class Saving:
    """A state on its way to the disk. Every process makes one, and finishes it, at the same steps.

    Torch's `dcp.async_save` is experimental, and ends when its files are written: checksums would need a thread of ours
    behind it all the same.
    """

    def __init__(
        self,
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
        self.folder, self.keep, self.meta = folder, keep, {"step": step, **meta}
        self.processes = (processes or Processes()).saving
        self.target = folder / f"step-{step:08d}"
        self.draft = self.target.with_suffix(DRAFT)
        self._what = f"the state of step {step} could not be written to {folder}"
        self._checksums: dict[str, int] = {}
        self._error: Exception | None = None
        write: Callable[[], None] | None = None
        if division is not None and not division.is_whole:
            views = {key: division.view(parameter_of(key), part) for key, part in _copied(model, optimizer).items()}
            write = partial(self._write_parts, views)
        elif self.processes.is_first:
            write = partial(self._write_whole, _copied(model, optimizer))
        self._thread = Thread(target=self._run, args=(write,), daemon=True)
        self._thread.start()

    def is_written(self) -> bool:
        """Whether the state is in its place, or has failed; `finish` would not wait for it."""
        return not self._thread.is_alive()

    def finish(self) -> None:
        """Wait until the state is in its place and all but the `keep` newest are gone. Raises RunError in all."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, write: Callable[[], None] | None) -> None:
        """What the thread does; an error is for `finish` to raise."""
        try:
            self._save(write)
        except Exception as error:
            self._error = error

    def _save(self, write: Callable[[], None] | None) -> None:
        self.processes.decide(lambda: self._on_disk(self._clear))
        failed: Exception | None = None
        try:
            if write is not None:
                write()
        except Exception as error:  # told to all
            failed = error
        found = self.processes.gather((self._checksums, None if failed is None else str(failed)))
        errors = dict.fromkeys(error for _, error in found if error is not None)
        try:
            if errors:
                raise RunError(f"{self._what}: {'; '.join(errors)}") from failed
            self.meta["checksums"] = {name: value for checksums, _ in found for name, value in checksums.items()}
            self.processes.decide(lambda: self._on_disk(self._publish))
        except RunError:
            self.processes.decide(self._drop)
            raise

    def _clear(self) -> None:
        put_back(self.folder)
        self._drop()
        self.draft.mkdir(parents=True)

    def _drop(self) -> None:
        """Remove what was left half written, by a kill or a full disk: its room is needed."""
        for path in self.folder.glob(f"step-*{DRAFT}"):
            shutil.rmtree(path, ignore_errors=True)

    def _write_whole(self, tensors: dict[str, Tensor]) -> None:
        for kind in ("model", "optimizer"):
            own = {key.partition("/")[2]: tensor for key, tensor in tensors.items() if key.startswith(f"{kind}/")}
            save_file(own, self.draft / f"{kind}.safetensors")
            self._seal(self.draft / f"{kind}.safetensors")

    def _write_parts(self, views: dict[str, Tensor]) -> None:
        writer = dcp.FileSystemWriter(self.draft, sync_files=False)
        try:
            dcp.save(views, storage_writer=writer, process_group=self.processes.saving_group)
        except CheckpointException as error:
            raise RunError(
                "; ".join(f"process {rank}: {failure[0]}" for rank, failure in error.failures.items())
            ) from error
        for path in sorted(self.draft.glob(f"__{self.processes.rank}_*")):
            self._seal(path)

    def _seal(self, path: Path) -> None:
        sync(path)
        self._checksums[path.name] = checksum(path)

    def _publish(self) -> None:
        """Only once a newer state is whole does an older one go."""
        for path in self.draft.glob(".metadata"):
            self._seal(path)
            self.meta["checksums"] |= self._checksums
        (self.draft / "meta.json").write_text(json.dumps(self.meta))
        sync(self.draft / "meta.json")
        sync(self.draft)
        if self.target.exists():
            os.rename(self.target, self.target.with_suffix(OLD))
        os.rename(self.draft, self.target)
        sync(self.folder)
        put_back(self.folder)
        older = [step for step in saved_steps(self.folder) if step <= self.meta["step"]]
        for step in older[: -self.keep]:
            shutil.rmtree(self.folder / f"step-{step:08d}", ignore_errors=True)

    def _on_disk(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            raise RunError(f"{self._what}: {error.strerror or error}") from error


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
    """Write the state after `step` steps and wait for it; then remove all but the `keep` newest."""
    Saving(folder, step, model, optimizer, meta, keep=keep, division=division, processes=processes).finish()


def saved_steps(folder: Path) -> list[int]:
    """Steps that have a whole state, ascending. One that was passed over (train/resume.py) is none."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if not path.suffix)


def put_back(folder: Path) -> None:
    """Undo what a kill left half done when a state took the place of another, which stays until it is there."""
    for path in folder.glob(f"step-*{OLD}"):
        place = path.with_suffix("")
        if place.exists():
            shutil.rmtree(path)
        else:
            os.rename(path, place)


def parameter_of(key: str) -> str:
    """The parameter that a tensor of the state belongs to."""
    return key.split("/")[-1]


def moving(model: Decoder) -> dict[str, Tensor]:
    """What training may change: parameters that learn, and buffers."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def checksum(path: Path) -> int:
    """CRC-32 of a file: against a disk that lies, not against people."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def sync(path: Path) -> None:
    """Wait until the disk has a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _copied(model: Decoder, optimizer: Optimizer) -> dict[str, Tensor]:
    """A copy of the state's tensors in this process, under "model/NAME" or "optimizer/QUANTITY/NAME"."""
    weights = {f"model/{name}": optimizer.here.get(name, tensor) for name, tensor in moving(model).items()}
    moments = {f"optimizer/{key}": tensor for key, tensor in optimizer.state_dict().items()}
    tensors = {**weights, **moments}.items()
    return {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors}
