"""The folder of a run: who may write in it, and whether a run goes there, beside it, or on from where it stopped.

    config.json        the resolved recipe           state/events.jsonl  decisions (runtime/events.py)
    environment.json   the machine and the source    state/lock          held while a process works here
    metrics.jsonl  ledger.jsonl  report.*            state/finished.json written last

A folder is never emptied or overwritten; one whose run was refused before its first stage is removed again. A default
place that holds another run makes the next one NAME-2, NAME-3, ...
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sobre.errors import RunError
from sobre.runtime.files import TEMPORARY, write_json
from sobre.schemas import VERSION, lines

PREPARATION = {"start", "data"}
"""Parts of a run before its first stage: what they leave is made again when the run is asked for rightly."""


def model_folder(run: Path, stage: str) -> Path:
    """Where in the folder of a run the model after `stage` lies: pretrain's is called base."""
    return run / ("base" if stage == "pretrain" else stage)


class RunFolder:
    """A claimed folder. The claim is a file lock: a kill of any kind releases it."""

    def __init__(self, path: Path, lock: int, *, resumed: bool) -> None:
        self.path = path
        self.resumed = resumed
        self._lock = lock

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def events(self) -> Path:
        return self.state / "events.jsonl"

    @property
    def config(self) -> dict[str, Any]:
        """The recipe that runs here."""
        return _recipe(self.path)

    def model(self, stage: str) -> Path:
        """Where the model after `stage` goes."""
        return model_folder(self.path, stage)

    def finish(self) -> None:
        """Say that everything is written: the folder is a finished run from now on."""
        write_json(self.state / "finished.json", {"schema": VERSION})

    @classmethod
    def joined(cls, path: Path) -> "RunFolder":
        """The folder as another process of the same run sees it, whose first one holds the lock."""
        return cls(path, os.open(os.devnull, os.O_RDONLY), resumed=False)

    def give_back(self) -> None:
        """Remove the folder of a run that was refused before any stage began."""
        billed = {entry["stage"] for entry in lines.read(self.ledger)}
        if not self.resumed and billed <= PREPARATION:
            shutil.rmtree(self.path)

    def release(self) -> None:
        """Let another process in; the end of this one does the same."""
        os.close(self._lock)


def claim(name: str, recipe: Mapping[str, Any], *, out: Path | None = None, root: Path = Path("out")) -> RunFolder:
    """Take a folder for a new run: `out` itself, or the first of root/NAME, root/NAME-2, ... that holds no run."""
    recipe = _plain(recipe)
    for path in [out] if out is not None else _candidates(root, name):
        kind = _look(path)
        if kind == "foreign":
            raise RunError(
                f"{path} holds files that are not of a run, and nothing there was touched; {_elsewhere(path)}"
            )
        if kind == "free":
            return _take(path, recipe)
        if kind == "unfinished" and _learned(_recipe(path)) == _learned(recipe):
            raise RunError(
                f"{path} holds an unfinished run of this very recipe; to go on with it:\n"
                f"  {resume_line(path)}\nto start anew beside it: --out {path}-new"
            )
        if out is not None:
            raise RunError(f"{path} holds another run ({kind}), and nothing there was touched; {_elsewhere(path)}")
    raise AssertionError("the candidates never end")


def resume(path: Path, recipe: Mapping[str, Any] | None = None) -> RunFolder:
    """Take the folder of an unfinished run again; a recipe, if given, must be the one that runs there."""
    kind = _look(path)
    if kind == "finished":
        raise RunError(f"{path} holds a finished run: there is nothing to resume (see {path / 'report.html'})")
    if kind != "unfinished":
        raise RunError(f"{path} holds no run to resume")
    if recipe is not None:
        changed = _differences(_learned(_recipe(path)), _learned(_plain(recipe)))
        if changed:
            raise RunError(
                f"{path} runs another recipe: {'; '.join(changed[:5])}"
                + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
                + f". To go on with the recipe that is there: {resume_line(path)}"
            )
    return RunFolder(path, _lock(path), resumed=True)


def find_unfinished(name: str, recipe: Mapping[str, Any], *, root: Path = Path("out")) -> Path:
    """The last of root/NAME, root/NAME-2, ... that holds an unfinished run of this recipe."""
    found = None
    for path in _candidates(root, name):
        kind = _look(path)
        if kind == "free":
            break
        if kind == "unfinished" and _learned(_recipe(path)) == _learned(_plain(recipe)):
            found = path
    if found is None:
        raise RunError(f"no unfinished run of this recipe in {root / name}, {root / name}-2, ...; say where with --out")
    return found


def is_unfinished(path: Path) -> bool:
    """Whether a run that may go on lies there."""
    return _look(path) == "unfinished"


def resume_line(path: Path) -> str:
    """What to type to go on with the run in `path`: the recipe is read from there."""
    return f"sobre run --out {path} --resume"


def _candidates(root: Path, name: str) -> Iterator[Path]:
    yield root / name
    number = 2
    while True:
        yield root / f"{name}-{number}"
        number += 1


def _look(path: Path) -> str:
    """free (absent, empty, or claimed by a process that died at once), foreign, unfinished or finished."""
    if not path.exists():
        return "free"
    if not path.is_dir():
        return "foreign"
    if (path / "config.json").is_file():
        if not _is_run(path):
            return "foreign"
        return "finished" if (path / "state" / "finished.json").is_file() else "unfinished"
    leftovers = (path / "state", path / "state" / "lock", path / f"config.json{TEMPORARY}")
    return "free" if all(entry in leftovers for entry in path.rglob("*")) else "foreign"


def _is_run(path: Path) -> bool:
    """A run's config.json says its schema, which a model folder's does not, and it has a state."""
    try:
        _recipe(path)
    except (RunError, OSError):
        return False
    return (path / "state").is_dir()


def _recipe(path: Path) -> dict[str, Any]:
    """The recipe in the folder's config.json."""
    file = path / "config.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{file} is not JSON: {error}") from None
    if not isinstance(document, dict) or document.pop("schema", None) != VERSION:
        raise RunError(f"{file} is not the recipe of a run of schema {VERSION}")
    return document


def _take(path: Path, recipe: dict[str, Any]) -> RunFolder:
    try:
        (path / "state").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {path}: {error.strerror or error}; {_elsewhere(path)}") from error
    lock = _lock(path)
    if _look(path) != "free":  # another process was faster
        os.close(lock)
        raise RunError(f"{path} was taken by another run at this moment; {_elsewhere(path)}")
    write_json(path / "config.json", {"schema": VERSION, **recipe})
    return RunFolder(path, lock, resumed=False)


def _lock(path: Path) -> int:
    """The descriptor of the locked file; the lock lives as long as it is open."""
    descriptor = os.open(path / "state" / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 32).decode() or "unknown"
        os.close(descriptor)
        raise RunError(f"a process (pid {holder}) is working in {path}; wait for it, or choose another --out") from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor


def _elsewhere(path: Path) -> str:
    return f"choose another folder, for example --out {path}-2"


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back, so that a recipe equals its saved self."""
    plain: dict[str, Any] = json.loads(json.dumps(recipe, allow_nan=False))
    plain.pop("schema", None)
    return plain


def _learned(recipe: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in a resumed run: all but how it lies on the processes, which changes nothing learned."""
    return {section: settings for section, settings in recipe.items() if section != "parallel"}


def _differences(there: Any, here: Any, at: str = "") -> list[str]:
    """The dotted keys whose values differ, with both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted(there.keys() | here.keys())
        return [line for key in keys for line in _differences(there.get(key), here.get(key), f"{at}.{key}".strip("."))]
    return [] if there == here else [f"{at} is {there!r} there and {here!r} here"]
