"""The model that a KL pulls to, on the disk, where a run replaces it as it goes (`rl.reference_every`).

A saved state says from which step its reference is. The weights lie in a file of their own, moved there whole before
any state can name it; files older than what the saved states name are removed.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from sobre.errors import CheckpointError
from sobre.runtime.processes import Processes
from sobre.train.state import saved_steps


class References:
    """The references of one stage."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self._folder, self._processes = folder, processes

    def keep(self, step: int, weights: dict[str, Tensor]) -> None:
        """Write the reference that is in force from `step` on; all processes hold the same, the first one writes."""
        self._processes.decide(lambda: self._write(step, weights))

    def fetch(self, step: int) -> dict[str, Tensor]:
        """The reference in force from `step` on."""
        path = self._path(step)
        if not path.is_file():
            raise CheckpointError(f"{path}: the saved state names this reference, and it is not there")
        return load_file(path)

    def _path(self, step: int) -> Path:
        return self._folder / f"reference-{step:08d}.safetensors"

    def _write(self, step: int, weights: dict[str, Tensor]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._path(step).with_suffix(".part")
        save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, draft)
        os.replace(draft, self._path(step))
        named = []
        for saved in saved_steps(self._folder):
            with suppress(FileNotFoundError):  # the thread that writes states removes old ones meanwhile
                meta = json.loads((self._folder / f"step-{saved:08d}" / "meta.json").read_text())
                named.append(meta["source"]["reference_step"])
        for path in self._folder.glob("reference-*.safetensors"):
            if named and int(path.stem.removeprefix("reference-")) < min(named):
                path.unlink()
