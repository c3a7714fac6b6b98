"""What every process did in one step of training, for chrome://tracing or Perfetto: torch's profiler, one file each."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from sobre.errors import RunError


class StepTrace:
    """Example: trace.begin(step); ...the step...; trace.end()"""

    def __init__(self, folder: Path, rank: int, wanted: int | None) -> None:
        """`wanted` is how many steps are done before the one that is traced; None: no step."""
        self.path, self.wanted = folder / f"process-{rank}.json", wanted
        self._profile: profile | None = None

    def begin(self, step: int) -> None:
        """After `step` steps."""
        if step != self.wanted:
            return
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self._profile = profile(activities=activities)
        self._profile.start()

    def end(self) -> None:
        """Write the file, if this step is the one."""
        if self._profile is None:
            return
        self._profile.stop()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self.path))
        except (OSError, RuntimeError) as error:
            raise RunError(f"the trace of a step could not be written to {self.path}: {error}") from error
        self._profile = None
