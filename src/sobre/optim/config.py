"""How the weights learn. No torch here."""

from typing import Literal

from sobre.config.base import config
from sobre.errors import ConfigError


@config
class OptimConfig:
    """Muon for the matrices and AdamW for the rest, or AdamW for everything; tables move by rows in either case."""

    kind: Literal["muon", "adamw"] = "muon"
    """What moves matrices and experts: "muon" (orthogonalised momentum) or "adamw"."""
    lr: float = 0.012
    """Peak learning rate of Muon; its updates have the size of AdamW's, so the two rates are of one kind."""
    lr_adam: float = 0.003
    """Peak learning rate of AdamW."""
    lr_table: float = 0.15
    """Peak learning rate of the memory's tables (AdaGrad by rows): how far a row moves the first time it is read."""
    weight_decay: float = 0.1
    """Decoupled decay, times the learning rate, of matrices, experts and head."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's memory of gradients and of their squares."""
    eps: float = 1e-8
    momentum: float = 0.95
    """Muon's memory of gradients (Nesterov)."""
    ns: Literal["minimax", "classic"] = "minimax"
    """Newton-Schulz coefficients: "minimax" learns as well in 4 steps as "classic" (Keller Jordan's) in 5."""
    ns_steps: int = 4
    """Newton-Schulz steps: 2 to 4 for "minimax", any number for "classic"."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises from zero."""
    cooldown: float = 0.4
    """Last part of the stage, by progress, over which the learning rate falls."""
    cooldown_shape: Literal["linear", "sqrt"] = "linear"
    """How it falls: in a line, or as 1 - sqrt (fast first), arXiv 2405.18392."""
    final: float = 0.0
    """Learning rate at the end over the peak."""

    def __post_init__(self) -> None:
        if self.ns == "minimax" and self.ns_steps not in (2, 3, 4):
            raise ConfigError(
                f"ns_steps={self.ns_steps} must be 2, 3 or 4 with ns=minimax; ns=classic takes any number"
            )
        for key in ("lr", "lr_adam", "lr_table", "weight_decay", "eps", "final"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key}={getattr(self, key)} must not be negative")
        if not 0 <= self.cooldown <= 1:
            raise ConfigError(f"cooldown={self.cooldown} must lie in 0..1: a part of the stage")
        if self.ns_steps < 1 or self.warmup_steps < 0:
            raise ConfigError(f"ns_steps={self.ns_steps} and warmup_steps={self.warmup_steps} must be 1 and 0 or more")
