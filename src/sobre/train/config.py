"""How a stage of training runs. No torch here."""

from typing import Literal

from sobre.config.base import config
from sobre.errors import ConfigError

Precision = Literal["auto", "fp8", "fp8-power-of-two"]
Recompute = bool | Literal["auto"]


@config
class StartConfig:
    """What the run begins with."""

    model: str = ""
    """Folder or hub id whose weights and tokenizer the first stage goes on from; empty begins from nothing."""
    sft: str = ""
    """Earlier stage whose model fine-tuning goes on from; empty means the stage before. The same for those below."""
    rl: str = ""
    sft2: str = ""
    """R1's second fine-tuning goes on from the base: "pretrain"."""
    rl2: str = ""
    dpo: str = ""
    distill: str = ""
    """ "nothing" begins a student of `distill.student`."""


@config
class StageConfig:
    """One stage of gradient training: pretraining or fine-tuning."""

    steps: int = 0
    """Optimizer steps; 0 lets the budget decide."""
    batch_tokens: int = 8192
    """Tokens of one optimizer step."""
    micro_tokens: int = 8192
    """Tokens of one forward pass; a step accumulates as many as it takes."""
    lr_scale: float = 1.0
    """Peak learning rate of the stage over the optimizer's own."""
    mtp_weight: float = 0.3
    """Weight of the multi-token prediction loss (lambda); 0 leaves the module untrained."""
    clip: float = 1.0
    """Largest norm of the gradient; larger ones are scaled down."""
    recompute: Recompute = "auto"
    """Keep of each layer its input alone, and compute the layer again in the backward pass: memory for about a third
    more arithmetic, the same gradients. auto: where the device's memory would not hold the stage else, by the plan's
    count (plan/card.py)."""
    precision: Precision = "auto"
    """What matrices and experts multiply in: auto is what the machine is fastest in; fp8 is DeepSeek-V3's
    (arXiv 2412.19437, 3.3), emulated on a CPU and slower there; power-of-two rounds its scales up, as V3.1 does, which
    keeps the inputs for the backward pass in one byte."""

    def __post_init__(self) -> None:
        for key in ("batch_tokens", "micro_tokens"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}={getattr(self, key)} must be at least 1")
        if self.steps < 0:
            raise ConfigError(f"steps={self.steps} must be 0 (the budget decides) or more")


@config
class PretrainConfig(StageConfig):
    """Pretraining: rows of one length."""

    compile: bool = False
    """Compile the layers by region (torch.compile, models/regions.py): minutes at the start, then norms, gates,
    rotations and sums in few kernels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compile and self.precision != "auto":
            raise ConfigError(f"compile=true is for precision=auto, not {self.precision}: FP8 has kernels of its own")


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
    language: float = 0.9
    """Share of an answer's words that must not be plainly of another language than its question (R1: none mixed)."""
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
        if not 0 <= self.language <= 1:
            raise ConfigError(f"answers.language={self.language} must lie in 0..1")
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
class FineTuneConfig(StageConfig):
    """Supervised fine-tuning: the cold start of R1 (arXiv 2501.12948, 2.3.1) is a few thousand examples."""

    paths: tuple[str, ...] = ()
    """Files or folders of chats (.jsonl, .parquet, also .gz or .zst); empty means worked examples of the tasks. Where
    a teacher answers, these are the chats without a thought that are mixed in."""
    n_examples: int = 6000
    """Worked examples, when there are no paths; more passes are made over them than there are, if the budget lasts."""
    answers: AnswersConfig = AnswersConfig()
    """A teacher whose verified answers are the examples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_examples < 1:
            raise ConfigError(f"n_examples={self.n_examples} must be at least 1")


@config
class SaveConfig:
    """When the state of a run goes to disk. It changes nothing in what is learned."""

    every_s: float = 30.0
    """Seconds between saved states; a kill loses at most these, and what it takes to write one. Training goes on
    meanwhile, except at 0: after every step, and waiting for the disk."""
    keep: int = 2
    """States kept, the one just written among them; the newest that is whole is the one resumed."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"save.keep={self.keep} must be at least 1: the state that a run goes on from")
