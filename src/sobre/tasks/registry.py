"""The tasks by name: ours, and those of installed packages. Adding one: docs/how-to/add-a-task.md.

A package names its tasks in the entry-point group `sobre.tasks`: NAME = "module:Class", a class without arguments.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

from sobre.errors import ConfigError
from sobre.tasks.arithmetic import Arithmetic
from sobre.tasks.base import Finder, Problem, Task
from sobre.tasks.copying import COPY_PROMPTS, REVERSE_PROMPTS, Rewriting
from sobre.tasks.countdown import Countdown
from sobre.tasks.dates import Dates
from sobre.tasks.equation import Equation
from sobre.tasks.formula import Formula
from sobre.tasks.knights import Knights
from sobre.tasks.sequence import Sequence
from sobre.tasks.sorting import Sorting
from sobre.tasks.sums import Sums
from sobre.tasks.word import Word

_ALL: tuple[Task, ...] = (
    Arithmetic(),
    Countdown(),
    Sorting(),
    Word(),
    Equation(),
    Sequence(),
    Rewriting("copy", COPY_PROMPTS, backwards=False),
    Rewriting("reverse", REVERSE_PROMPTS, backwards=True),
    Sums(),
    Dates(),
    Knights(),
    Formula(),
)
GROUP = "sobre.tasks"


def installed(entries: Iterable[EntryPoint], known: Iterable[str]) -> dict[str, Task]:
    """The tasks of other packages. ConfigError for one that cannot be loaded, is no task, or takes a known name."""
    found: dict[str, Task] = {}
    for entry in entries:
        where = f"the installed task {entry.name} ({entry.value})"
        try:
            each = entry.load()()
        except Exception as error:  # whatever another's package raises
            raise ConfigError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
        lacking = [part for part in ("problem", "thought", "score") if not callable(getattr(each, part, None))]
        if lacking:
            raise ConfigError(f"{where} is no task: it has no {', '.join(lacking)} (sobre.tasks.base.Task)")
        if getattr(each, "name", None) != entry.name:
            raise ConfigError(f"{where} calls itself {getattr(each, 'name', None)!r}; both names must be one")
        if entry.name in found or entry.name in known:
            raise ConfigError(f"{where}: there is a task of this name already; give it another")
        found[entry.name] = each
    return found


TASKS: dict[str, Task] = {each.name: each for each in _ALL}
TASKS |= installed(entry_points(group=GROUP), TASKS)


def task(name: str) -> Task:
    """The task of this name; an unknown one is an error that shows the near ones."""
    if name not in TASKS:
        near = get_close_matches(name, TASKS, n=3, cutoff=0.5) or sorted(TASKS)
        raise ConfigError(f"tasks.names: there is no task '{name}'; near it: {', '.join(near)}")
    return TASKS[name]


def worked_answer(problem: Problem) -> str:
    """The answer at which a thought about the problem arrives."""
    chosen = task(problem.task)
    return chosen.found(problem) if isinstance(chosen, Finder) else problem.answer
