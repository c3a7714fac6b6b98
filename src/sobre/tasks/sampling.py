"""Problems by seed and index, in splits that can never share one, in equal parts of every task and language.

The split of a problem is a hash of its key, which knows neither language nor wording: whoever asks for a training
problem draws until the key falls into "train". The test set is fixed by its seed; its digest stands in a test.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping
from typing import Literal

from sobre.errors import ConfigError
from sobre.tasks.base import Problem
from sobre.tasks.config import TasksConfig, check_difficulty
from sobre.tasks.format import plain_response, response
from sobre.tasks.registry import task

Split = Literal["train", "val", "test"]
Difficulty = int | tuple[int, int]
"""One level, or the lowest and highest of a range."""
Message = dict[str, str]
DEFAULT = TasksConfig()
_MAX_DRAWS = 2_000


def split_of(key: str) -> Split:
    """The split of a problem: a tenth test, a tenth validation, the rest training."""
    bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % 10
    return "test" if bucket == 0 else "val" if bucket == 1 else "train"


def sample_problem(name: str, lang: str, difficulty: Difficulty, split: Split, seed: int | str, index: int) -> Problem:
    """Problem `index` of the endless stream named by the other arguments."""
    low, high = difficulty if isinstance(difficulty, tuple) else (difficulty, difficulty)
    check_difficulty("difficulty", low, high)
    chosen = task(name)
    rng = random.Random(f"{seed}/{name}/{lang}/{split}/{index}")
    for _ in range(_MAX_DRAWS):
        problem = chosen.problem(rng, lang, rng.randint(low, high))
        if split_of(problem.key) == split:
            return problem
    raise ConfigError(f"task '{name}' at difficulty {difficulty} has no problem in split '{split}'")


def cell(index: int, names: tuple[str, ...], langs: tuple[str, ...]) -> tuple[str, str]:
    """The task and language of position `index`, so that every prefix holds equal parts of each, as far as it can."""
    turn = index % (len(names) * len(langs))
    return names[turn % len(names)], langs[(turn % len(names) + turn // len(names)) % len(langs)]


def test_set(n: int = 1000, cfg: TasksConfig = DEFAULT) -> list[Problem]:  # noqa: PT028
    """The fixed test set: n different problems. A smaller one begins a larger one."""
    return _distinct(cfg, "test", f"test/{cfg.test_seed}", n)


test_set.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test where it is imported


def val_set(n: int = 200, cfg: TasksConfig = DEFAULT) -> list[Problem]:
    """Problems like the test's for choosing between settings, so that nothing is ever chosen on the test set."""
    return _distinct(cfg, "val", f"val/{cfg.test_seed}", n)


def _distinct(cfg: TasksConfig, split: Split, seed: str, n: int) -> list[Problem]:
    """The first n problems of a stream whose keys differ."""
    problems: dict[str, Problem] = {}
    drawn: dict[tuple[str, str], int] = {}
    for index in range(n):
        name, lang = cell(index, cfg.names, cfg.langs)
        for _ in range(_MAX_DRAWS):
            at = drawn[name, lang] = drawn.get((name, lang), -1) + 1
            problem = sample_problem(name, lang, cfg.test_difficulty, split, seed, at)
            if problem.key not in problems:
                break
        else:
            raise ConfigError(
                f"task '{name}' at difficulty {cfg.test_difficulty} has fewer different problems in split '{split}'"
                f" than the {n} asked for need; ask for fewer, or for a higher difficulty"
            )
        problems[problem.key] = problem
    return list(problems.values())


def mixed_problem(
    cfg: TasksConfig, seed: int | str, index: int, levels: Mapping[str, Difficulty] | None = None
) -> Problem:
    """Training problem `index` of the mixture; `levels` overrides the difficulty by task (a curriculum's choice)."""
    name, lang = cell(index, cfg.names, cfg.langs)
    difficulty = (levels or {}).get(name, cfg.difficulty)
    return sample_problem(name, lang, difficulty, "train", f"{cfg.seed}/{seed}", index)


def chat(cfg: TasksConfig, seed: int | str, index: int) -> list[Message]:
    """Worked example `index`: the question, and a response with a correct thought."""
    problem = mixed_problem(cfg, seed, index)
    thought = task(problem.task).thought(problem, random.Random(f"{cfg.seed}/{seed}/thought/{index}"))
    return [{"role": "user", "content": problem.prompt}, {"role": "assistant", "content": response(problem, thought)}]


def plain_chat(cfg: TasksConfig, seed: int | str, index: int) -> list[Message]:
    """Question `index` of the easiest difficulty, answered at once: what a model does that is told not to think."""
    easiest = cfg.difficulty[0]
    problem = mixed_problem(cfg, f"{seed}/plain", index, dict.fromkeys(cfg.names, easiest))
    return [{"role": "user", "content": problem.prompt}, {"role": "assistant", "content": plain_response(problem)}]


def stream(cfg: TasksConfig, seed: int | str, start: int = 0) -> Iterator[list[Message]]:
    """Worked examples without end, from number `start` on."""
    index = start
    while True:
        yield chat(cfg, seed, index)
        index += 1
