"""sobre run: the whole story of one recipe, in one folder, within one budget."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sobre.app.layout import check_layout
from sobre.config.load import Layer, decode, to_dict
from sobre.config.recipe import Recipe, load_recipe
from sobre.errors import CheckpointError, ConfigError, DataError, RunError
from sobre.runtime.allocator import reexec_once
from sobre.runtime.clock import process_age_s
from sobre.runtime.files import is_disk_full
from sobre.runtime.run_folder import RunFolder, claim, find_unfinished, is_unfinished, resume, resume_line
from sobre.runtime.sinks import Tracker, check_installed, opened

if TYPE_CHECKING:
    from sobre.runtime.processes import Processes


@dataclass(frozen=True)
class RunOptions:
    """Flags of `sobre run` that are no part of the recipe."""

    out: Path | None = None
    """Folder of the run; out/NAME when not given."""
    resume: bool = False
    """Go on with an unfinished run: the one in --out, or the last one of this recipe."""
    json: bool = False
    """Print the report as one JSON document on standard output; progress goes to standard error."""
    watch: tuple[Tracker, ...] = ()
    """Trackers that get the metrics, besides metrics.jsonl."""
    trace: int | None = None
    """Steps of a stage before the one that every process writes a trace of: state/trace/STAGE/process-N.json."""

    def __post_init__(self) -> None:
        if self.trace is not None and self.trace < 0:
            raise ConfigError(f"--trace {self.trace} must be 0 (the first step of each stage) or more")


Show = Callable[[RunFolder, RunOptions], None]
MODEL_FLAG = {"--model": "--start.model"}
SHORT_FLAGS = MODEL_FLAG | {"--chip": "--budget.price.machine"}


def main(argv: list[str]) -> int:
    """sobre run: what does this budget become?"""
    return run(*load_recipe(argv, RunOptions, prog="sobre run", shortcuts=SHORT_FLAGS))


def run(recipe: Recipe, options: RunOptions, *, until: str = "report", show: Show | None = None) -> int:
    """Tell the story of `recipe` in its folder up to a part of it, and show how it ended."""
    reexec_once()
    from sobre.app import adapting, sampling  # torch from here on
    from sobre.app.session import Session
    from sobre.app.story import tell
    from sobre.runtime.console import Console
    from sobre.runtime.processes import Processes

    adapting.check(recipe)
    sampling.check(recipe)
    check_installed(options.watch)
    processes = Processes.start(timedelta(seconds=recipe.parallel.timeout_s))
    recipe.parallel.check(processes.count)
    if not options.resume:
        processes.decide(lambda: check_layout(recipe, processes.count))
    folder = _folder(recipe, options, processes)
    layout = recipe.parallel  # of this launch: a run may go on in another one than it began in
    recipe = decode(Recipe, [Layer(str(folder.path / "config.json"), processes.decide(lambda: folder.config))])
    recipe = replace(recipe, parallel=layout)
    with Console(quiet=not processes.is_first) as console:
        again = f"{resume_line(folder.path)}{recipe.parallel.flags}"
        head_start_s = 0.0 if folder.resumed else process_age_s()
        try:
            console.say(f"run {recipe.name} in {folder.path}" + _crowd(processes))
            with (
                processes.watched(folder.path / "state" / "flight"),
                opened(options.watch if processes.is_first else (), folder.path, to_dict(recipe)) as sinks,
            ):
                session = Session.open(
                    recipe,
                    folder,
                    console,
                    processes=processes,
                    head_start_s=head_start_s,
                    sinks=sinks,
                    traced=options.trace,
                )
                tell(session, until)
        except Exception as error:
            if is_disk_full(error):
                kept = f"the disk of {folder.path} is full ({error}); what was saved stays. Make room, then go on:"
                raise RunError(f"{kept}\n  {again}") from error
            if isinstance(error, ConfigError | DataError | CheckpointError) and processes.is_first:
                folder.give_back()
            raise
        except KeyboardInterrupt:
            console.close()
            console.say(f"to go on:\n  {again}")
            raise
        finally:
            folder.release()
    processes.stop()
    if processes.is_first:
        (show or _show)(folder, options)
    return 0


def _folder(recipe: Recipe, options: RunOptions, processes: "Processes") -> RunFolder:
    """The folder of the run: the first process takes it, the others are told where it is."""
    taken: list[RunFolder] = []

    def take() -> Path:
        if options.resume or (processes.is_restart() and _is_begun(recipe, options)):
            given = None if recipe.says_nothing else to_dict(recipe)  # without a recipe, the folder's own goes on
            taken.append(resume(options.out or find_unfinished(recipe.name, to_dict(recipe)), given))
        else:
            taken.append(claim(recipe.name, to_dict(recipe), out=options.out))
        return taken[0].path

    path = processes.decide(take)
    return taken[0] if taken else RunFolder.joined(path)


def _is_begun(recipe: Recipe, options: RunOptions) -> bool:
    """Whether the processes that failed had come as far as taking a folder."""
    try:
        return is_unfinished(options.out or find_unfinished(recipe.name, to_dict(recipe)))
    except RunError:
        return False


def _crowd(processes: "Processes") -> str:
    if processes.count == 1:
        return ""
    nodes = f" on {processes.n_nodes} machines" if processes.n_nodes > 1 else ""
    return f": {processes.count} processes{nodes}"


def _show(folder: RunFolder, options: RunOptions) -> None:
    report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        from rich.console import Console as Terminal

        from sobre.report.story import story

        Terminal(file=sys.stdout).print(story(report, folder.path))
