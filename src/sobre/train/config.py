"""How a stage of training runs. No torch here."""

from typing import Literal

from sobre.config.base import config
from sobre.errors import ConfigError

Precision = Literal["auto", "fp8", "fp8-power-of-two"]


@config
class StartConfig:
    """What the run begins with."""

    model: str = ""
    """Folder or hub id whose weights and tokenizer the first stage goes on from; empty begins from nothing."""


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
class FineTuneConfig(StageConfig):
    """Supervised fine-tuning: the cold start of R1 (arXiv 2501.12948, 2.3.1) is a few thousand examples."""

    paths: tuple[str, ...] = ()
    """Files or folders of chats (.jsonl, .parquet, also .gz or .zst); empty means worked examples of the tasks."""
    n_examples: int = 6000
    """Worked examples, when there are no paths; more passes are made over them than there are, if the budget lasts."""

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
    """States kept; the newest that is whole is the one resumed."""
