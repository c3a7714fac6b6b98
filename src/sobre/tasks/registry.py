"""The tasks by name. Adding one: docs/how-to/add-a-task.md."""

from difflib import get_close_matches

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
TASKS: dict[str, Task] = {each.name: each for each in _ALL}


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
