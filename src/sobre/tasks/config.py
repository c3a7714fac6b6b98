"""What is asked of a model, and what generated text it reads. No torch here."""

from typing import Literal

from sobre.config.base import config
from sobre.errors import ConfigError

Lang = Literal["en", "fr", "zh"]
LANGS: tuple[Lang, ...] = ("en", "fr", "zh")
TASK_NAMES = ("arithmetic", "countdown", "sorting", "word", "equation", "sequence")


def check_difficulty(where: str, low: int, high: int) -> None:
    """Refuse a range of difficulties that is empty or leaves 1..5."""
    if not 1 <= low <= high <= 5:
        raise ConfigError(f"{where}=({low}, {high}) must be a range within 1..5, such as (1, 3) or (3, 3)")


def check_mix(where: str, names: tuple[str, ...], langs: tuple[str, ...]) -> None:
    """Refuse an empty list of tasks or languages, and repetitions, which would change the shares unseen."""
    for field, values in (("names", names), ("langs", langs)):
        if not values or len(set(values)) != len(values):
            raise ConfigError(f"{where}.{field}={list(values)} must hold at least one value, each once")


@config
class TasksConfig:
    """The mixture of verifiable problems: equal parts of every task and language."""

    names: tuple[str, ...] = TASK_NAMES
    """Tasks, each once (`sobre.tasks.registry`)."""
    langs: tuple[Lang, ...] = LANGS
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

    def __post_init__(self) -> None:
        check_mix("tasks", self.names, self.langs)
        check_difficulty("tasks.difficulty", *self.difficulty)
        check_difficulty("tasks.test_difficulty", self.test_difficulty, self.test_difficulty)
        if self.test_size < 1:
            raise ConfigError(f"tasks.test_size={self.test_size} must be at least 1")
        if not 0 <= self.format_weight < 1:
            raise ConfigError(f"tasks.format_weight={self.format_weight} must lie in 0..1, below a right answer's 1")


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
    """Share of all documents that are small talk in the chat layout: which of two numbers is larger, with a thought.
    It shows the layout to a base that no worked example will; none of it is an evaluated task."""
    steps_share: float = 1.0
    """Share of the worked problems that show their steps; the others give the answer at once."""

    def __post_init__(self) -> None:
        check_mix("text", self.names, self.langs)
        check_difficulty("text.difficulty", *self.difficulty)
        shares = (self.worked_share, self.facts_share, self.sentences_share)
        if min(shares) < 0 or sum(shares) <= 0:
            raise ConfigError(f"text shares (worked, facts, sentences)={shares} must not be negative, nor all zero")
        for key in ("chat_share", "steps_share"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"text.{key}={getattr(self, key)} must lie in 0..1")
