"""Settings of learning from another model's answers. No torch here."""

from typing import Literal

from sobre.config.base import config
from sobre.errors import ConfigError
from sobre.models.config import DenseConfig, ModelConfig
from sobre.train.config import StageConfig


@config
class AnswersConfig:
    """A teacher answers problems; what a verifier finds nothing wrong with is kept (R1, arXiv 2501.12948, 2.3.3)."""

    teacher: str = ""
    """Who answers: an earlier stage of this run, a model's folder or Hub id, or the URL (up to /v1) of a service;
    empty means nobody, and other examples are learned from."""
    model_name: str = ""
    """The model's name at the service."""
    key_env: str = ""
    """Environment variable that holds the key of the service."""
    n_problems: int = 0
    """Problems to be answered; 0 goes on until `share` of the stage's budget is spent."""
    share: float = 0.5
    """Of the stage's budget, for the answers."""
    k: int = 4
    """Answers to each problem."""
    keep: int = 1
    """Most answers to one problem that are learned from."""
    temperature: float = 1.0
    top_p: float = 0.95
    max_tokens: int = 192
    """Longest answer, thought included; a longer one is cut, and not kept."""
    longest: int = 0
    """Tokens above which a whole answer is not kept (R1 left out long paragraphs); 0 keeps every length."""
    repeats: int = 4
    """A line that comes this often makes a thought unreadable."""
    plain_share: float = 0.25
    """Of the chats learned from, the share without a thought, so that thinking can be switched off (R1: 200K of 800K):
    from `paths`, or problems answered at once."""

    def __post_init__(self) -> None:
        for name, least in (("n_problems", 0), ("k", 1), ("keep", 1), ("max_tokens", 1), ("longest", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"answers.{name}={getattr(self, name)} must be {least} or more")
        if self.repeats < 2:
            raise ConfigError(f"answers.repeats={self.repeats} must be 2 or more: every line comes once")
        if not 0 < self.share < 1:
            raise ConfigError(f"answers.share={self.share} must lie between 0 and 1: the rest is for learning")
        if not 0 <= self.plain_share < 1:
            raise ConfigError(f"answers.plain_share={self.plain_share} must lie in 0..1, 1 excluded")
        if not 0 < self.temperature <= 2 or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"answers.temperature={self.temperature} must lie above 0 and up to 2: {self.k} greedy answers are all"
                f" alike; answers.top_p={self.top_p} above 0 and up to 1"
            )
        if "://" in self.teacher and not self.model_name:
            raise ConfigError(f"answers.teacher={self.teacher} needs answers.model_name, the model's name there")


@config
class DistillConfig(StageConfig):
    """A student learns from a teacher: from its verified answers, or token by token on the student's own."""

    method: Literal["text", "on_policy"] = "text"
    """text: next-token loss on the teacher's answers. on_policy: the student answers, and at each of its tokens its
    whole distribution is drawn to the teacher's (arXiv 2306.13649; Qwen3, arXiv 2505.09388, 4.5)."""
    answers: AnswersConfig = AnswersConfig()
    """The teacher (of both methods), and how its answers are drawn and chosen (text)."""
    student: ModelConfig = ModelConfig(d_model=128, n_layers=4, ffn=DenseConfig(d_ff=384))
    """The model of a student from nothing; its vocabulary and context are the run's."""
    n_prompts: int = 64
    """Answers of one step, each to a problem of its own (on_policy)."""
    max_tokens: int = 192
    """Longest answer (on_policy)."""
    temperature: float = 1.0
    """Of the student's answers (on_policy)."""
    beta: float = 1.0
    """1 is the reverse KL(student || teacher), 0 the forward KL(teacher || student), between them the generalised
    Jensen-Shannon divergence (on_policy)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_prompts", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"distill.{name}={getattr(self, name)} must be 1 or more")
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"distill.beta={self.beta} must lie in 0..1")
        if not 0 < self.temperature <= 2:
            raise ConfigError(f"distill.temperature={self.temperature} must lie above 0 and up to 2")
        if self.method == "on_policy" and "://" in self.answers.teacher:
            raise ConfigError(
                f"distill.method=on_policy needs the teacher's whole distribution, which {self.answers.teacher} does"
                " not give; a folder or a stage would do, or method=text"
            )
