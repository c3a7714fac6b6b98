"""Where metrics go besides metrics.jsonl: to a tracker that is installed, if the user asks for it (`--watch`).

Numbers go, named STAGE/NAME at the stage's own step; what is a table (expert loads) or has no value stays in
metrics.jsonl alone. Trackers find their servers and keys as they always do, in the environment.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal, Protocol

from sobre.errors import ConfigError

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Sink(Protocol):
    """One tracker."""

    def add(self, stage: str, step: int, values: Mapping[str, float]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run folder, one writer for each stage: a resumed stage hides the steps that it runs again."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        self._folder = folder / "tensorboard"
        self._writers: dict[str, Any] = {}

    def add(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self._writers:
            tensorboard = importlib.import_module("torch.utils.tensorboard")
            self._writers[stage] = tensorboard.SummaryWriter(str(self._folder / stage), purge_step=step)
        for name, value in values.items():
            self._writers[stage].add_scalar(name, value, step)

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class Logged:
    """W&B, and trackio, which has its functions. Their own count of steps cannot go back: each stage has an axis."""

    def __init__(self, module: str, folder: Path, recipe: Mapping[str, Any]) -> None:
        self._module = importlib.import_module(module)
        self._module.init(project="sobre", name=folder.name, config=dict(recipe))

    def add(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._module.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in values.items()}})

    def flush(self) -> None:
        """They send as they go."""

    def close(self) -> None:
        self._module.finish()


class MLflow:
    """A run of the experiment "sobre" on the server of MLFLOW_TRACKING_URI."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._mlflow.set_experiment("sobre")
        self._mlflow.start_run(run_name=folder.name)
        self._mlflow.log_dict(dict(recipe), "recipe.json")

    def add(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    def flush(self) -> None:
        """It sends as it goes."""

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS: dict[Tracker, Callable[[Path, Mapping[str, Any]], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda folder, recipe: Logged("wandb", folder, recipe),
    "mlflow": MLflow,
    "trackio": lambda folder, recipe: Logged("trackio", folder, recipe),
}


def check_installed(names: Sequence[Tracker]) -> None:
    """Refuse a tracker that is not there, before anything is done."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            there = [other for other in TRACKERS if importlib.util.find_spec(other)]
            raise ConfigError(
                f"--watch {name}: it is not installed (pip install {name});"
                f" here are: {', '.join(there) or 'none'}. metrics.jsonl is always written"
            )


@contextmanager
def opened(names: Sequence[Tracker], folder: Path, recipe: Mapping[str, Any]) -> Iterator[list[Sink]]:
    """The trackers of these names, told of the run, and of its end whatever it is. What they print goes to standard
    error: standard output may be a JSON document."""
    with redirect_stdout(sys.stderr):
        sinks = [TRACKERS[name](folder, recipe) for name in names]
    try:
        yield sinks
    finally:
        with redirect_stdout(sys.stderr):
            for sink in sinks:
                sink.close()


def numbers(values: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, float]]:
    """What a tracker can show, nested names joined by "/"."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{at}{name}/")
        elif isinstance(value, int | float):
            yield f"{at}{name}", float(value)
