"""Problems to click on the chat page: of the test split, so that no model trained here has seen them."""

from itertools import cycle

from sobre.tasks.registry import TASKS
from sobre.tasks.sampling import sample_problem

LANGUAGES = ("en", "fr", "zh")


def example_problems(difficulty: int = 2, seed: int = 0) -> list[dict[str, str]]:
    """One problem of each task, the languages in turn; the same ones at every start."""
    problems = [
        sample_problem(task, lang, difficulty, "test", seed, index)
        for index, (task, lang) in enumerate(zip(TASKS, cycle(LANGUAGES), strict=False))
    ]
    return [{"task": problem.task, "lang": problem.lang, "prompt": problem.prompt} for problem in problems]
