"""Settings of learning from preferences. No torch here."""

from sobre.config.base import config
from sobre.errors import ConfigError
from sobre.train.config import StageConfig


@config
class DPOConfig(StageConfig):
    """Direct preference optimisation (arXiv 2305.18290): the chosen answer becomes likelier than the rejected one."""

    paths: tuple[str, ...] = ()
    """Files or folders of pairs (.jsonl, also .gz or .zst): chats `chosen` and `rejected`, or these after `prompt`."""
    beta: float = 0.1
    """How much an answer's log-ratio to the reference counts: small values let the model move far."""
    label_smoothing: float = 0.0
    """Share of the pairs believed to be the wrong way round."""
    mtp_weight: float = 0.0
    lr_scale: float = 0.05
    """Peak learning rate of the stage over the optimizer's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ConfigError(f"dpo.beta={self.beta} must lie above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"dpo.label_smoothing={self.label_smoothing} must lie in 0..0.5, 0.5 excluded")
        if self.mtp_weight:
            raise ConfigError(f"dpo.mtp_weight={self.mtp_weight} must be 0: a pair has no next token to predict")
