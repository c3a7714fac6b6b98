"""Settings of learning from another model's answers. No torch here."""

from typing import Literal

from sobre.config.base import config
from sobre.errors import ConfigError
from sobre.models.config import DenseConfig, ModelConfig
from sobre.train.config import FineTuneConfig


@config
class DistillConfig(FineTuneConfig):
    """A student learns from a teacher: from its verified answers, or token by token on the student's own."""

    method: Literal["text", "on_policy"] = "text"
    """text: next-token loss on the answers of `answers.teacher`. on_policy: the student answers, and at each of its
    tokens its whole distribution is drawn to the teacher's (arXiv 2306.13649; Qwen3, arXiv 2505.09388, 4.5)."""
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
