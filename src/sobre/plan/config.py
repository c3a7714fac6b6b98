"""What may be spent, and how it is split over the stages. No torch here."""

from sobre.config.base import config
from sobre.errors import ConfigError
from sobre.ledger.config import PriceConfig


@config
class SplitConfig:
    """Weights of the stages in the training part of the budget; a stage that the recipe leaves out counts as 0."""

    pretrain: float = 0.30
    sft: float = 0.35
    rl: float = 0.35
    sft2: float = 0.35
    rl2: float = 0.35
    dpo: float = 0.10
    distill: float = 0.35

    def __post_init__(self) -> None:
        for stage in ("pretrain", "sft", "rl", "sft2", "rl2", "dpo", "distill"):
            if not 0 <= getattr(self, stage) < 1e6:
                raise ConfigError(f"budget.split.{stage}={getattr(self, stage)} must be a weight of 0 or more")


@config
class BudgetConfig:
    """The one dial."""

    amount: str = "7m"
    """Seconds, minutes or hours of this machine (90s, 10m, 1h), dollars (20usd), device-hours (2gpuh) or 3e18flop."""
    price: PriceConfig = PriceConfig()
    """What turns hours into dollars and back."""
    split: SplitConfig = SplitConfig()
    """Shares of the stages."""
    reserve: float = 0.18
    """Share kept for start, data, evaluation, saving and report. Training or rollouts fill the rest."""
    tokens_per_active: float = 5.0
    """What a chosen model should see: trained tokens for each active parameter. Chinchilla (arXiv 2203.15556) has 20
    for dense models at large scale; minutes on a laptop buy less, of real text far less: *assumed*."""
    choose_model: bool = True
    """The plan chooses the sizes of the model; False keeps the recipe's `model`."""

    def __post_init__(self) -> None:
        if not 0 < self.tokens_per_active < 1e6:
            raise ConfigError(f"budget.tokens_per_active={self.tokens_per_active} must be above 0")
        if not 0.02 <= self.reserve <= 0.5:
            raise ConfigError(f"budget.reserve={self.reserve} must lie in 0.02..0.5")
