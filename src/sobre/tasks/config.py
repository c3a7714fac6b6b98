"""What is asked of a model, and what generated text it reads. No torch here."""

import re
from pathlib import PurePath
from typing import Literal

from sobre.config.base import config
from sobre.errors import ConfigError

Lang = Literal["en", "fr", "zh"]
LANGS: tuple[Lang, ...] = ("en", "fr", "zh")
JUDGE_S = 60.0
HARDEST = 5
"""The last level of a generated task; the first is 1."""
TASK_NAMES = ("arithmetic", "countdown", "sorting", "word", "equation", "sequence")


def check_difficulty(where: str, low: int, high: int) -> None:
    """Refuse a range of difficulties that is empty or leaves 1..HARDEST."""
    if not 1 <= low <= high <= HARDEST:
        raise ConfigError(f"{where}=({low}, {high}) must be a range within 1..{HARDEST}, such as (1, 3) or (3, 3)")


def named_files(where: str, entries: tuple[str, ...]) -> dict[str, str]:
    """NAME=PATH, or PATH, which is called what its file is called, as {name: path}."""
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not equals or not re.fullmatch(r"[\w.-]+", name):
            name, path = PurePath(entry).name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".parquet"), entry
        if not name or not path:
            raise ConfigError(f"{where}: {entry!r} must be NAME=PATH or the PATH of a file")
        if name in found:
            raise ConfigError(f"{where}: {found[name]} and {path} are both called {name}; write NAME=PATH")
        found[name] = path
    return found


def check_mix(where: str, names: tuple[str, ...], langs: tuple[str, ...]) -> None:
    """Refuse an empty list of tasks or languages, and repetitions, which would change the shares unseen."""
    for field, values in (("names", names), ("langs", langs)):
        if not values or len(set(values)) != len(values):
            raise ConfigError(f"{where}.{field}={list(values)} must hold at least one value, each once")


@config
class TasksConfig:
    """The mixture of verifiable problems: equal parts of every task and language, and of every file."""

    names: tuple[str, ...] = TASK_NAMES
    """Generated tasks, each once (`sobre.tasks.registry`); may be empty where there are files."""
    files: tuple[str, ...] = ()
    """Sets of problems, NAME=PATH or PATH (.jsonl, .jsonl.gz, .parquet), or hf://OWNER/SET/FILE. A tenth of each, by a
    hash of the question, is kept for the test and another for validation; training problems that overlap with those are
    left out and counted."""
    test_files: tuple[str, ...] = ()
    """Sets that are only examined on; then nothing of `files` is kept for the test."""
    max_question: int = 0
    """Characters of the longest question of a file; longer ones are left out and counted. 0 takes all."""
    langs: tuple[Lang, ...] = LANGS
    """Languages of the generated tasks; a file is in its own."""
    difficulty: tuple[int, int] = (1, 3)
    """Lowest and highest difficulty of worked examples; (3, 3) is the test's alone."""
    test_difficulty: int = 3
    test_size: int = 1000
    """Problems in the test set; a smaller one is the beginning of a larger one."""
    test_seed: int = 1
    """Fixes the test set. Scores with another seed are scores on another test."""
    seed: int = 0
    """Seed of the training problems, besides the run's own."""
    format_weight: float = 0.1
    """Reward for the exact layout of a response, beside 1 for the right answer."""
    language_weight: float = 0.0
    """Reward for a response in the language of its question: this times the share of its words that are of it."""
    credit_weight: float = 0.0
    """Reward for a wrong answer that is near, where the task can say how near (copy, reverse, sorting, countdown):
    this times the nearness from 0 to 1."""
    judge_s: float = JUDGE_S
    """Seconds after which a judge that has not answered stops the run; none of ours takes as long."""

    def __post_init__(self) -> None:
        if self.names or not self.files:
            check_mix("tasks", self.names, self.langs)
        files, test_files = named_files("tasks.files", self.files), named_files("tasks.test_files", self.test_files)
        if both := sorted((files.keys() & self.names) | (test_files.keys() & (files.keys() | set(self.names)))):
            raise ConfigError(f"tasks: {', '.join(both)} stands for two sets; give the files other names, NAME=PATH")
        if test_files and not files:
            raise ConfigError("tasks.test_files needs tasks.files to learn from")
        if self.max_question < 0:
            raise ConfigError(f"tasks.max_question={self.max_question} must be 0 (all) or more")
        check_difficulty("tasks.difficulty", *self.difficulty)
        check_difficulty("tasks.test_difficulty", self.test_difficulty, self.test_difficulty)
        if self.test_size < 1:
            raise ConfigError(f"tasks.test_size={self.test_size} must be at least 1")
        if not self.judge_s > 0:
            raise ConfigError(f"tasks.judge_s={self.judge_s} must lie above 0")
        for key in ("format_weight", "language_weight", "credit_weight"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"tasks.{key}={getattr(self, key)} must lie in 0..1, below a right answer's 1")


@config
class TextConfig:
    """Generated pretraining text. The three shares are relative to one another and count documents."""

    names: tuple[str, ...] = TASK_NAMES
    """Tasks whose worked problems the text holds."""
    langs: tuple[Lang, ...] = LANGS
    difficulty: tuple[int, int] = (1, 3)
    worked_share: float = 0.5
    """Problems with their steps and answer, in plain text."""
    facts_share: float = 0.3
    """Sums, differences, products, quotients and comparisons of small numbers."""
    sentences_share: float = 0.2
    """Plain sentences about everyday things."""
    chat_share: float = 0.0
    """Documents of small talk in the chat layout, for each of the others: which of two numbers is larger, with a
    thought. It shows the layout to a base that no worked example will; none of it is an evaluated task."""
    chat_names: tuple[str, ...] = ()
    """Tasks whose worked problems are small talk too, each as often as the comparison; none that `tasks.names` has."""
    steps_share: float = 1.0
    """Share of the worked problems that show their steps; the others give the answer at once."""

    def __post_init__(self) -> None:
        check_mix("text", self.names, self.langs)
        if len(set(self.chat_names)) != len(self.chat_names):
            raise ConfigError(f"text.chat_names={list(self.chat_names)} must hold each task once")
        check_difficulty("text.difficulty", *self.difficulty)
        shares = (self.worked_share, self.facts_share, self.sentences_share)
        if min(shares) < 0 or sum(shares) <= 0:
            raise ConfigError(f"text shares (worked, facts, sentences)={shares} must not be negative, nor all zero")
        for key in ("chat_share", "steps_share"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"text.{key}={getattr(self, key)} must lie in 0..1")
