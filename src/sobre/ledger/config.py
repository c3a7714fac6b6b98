"""What an hour of the machine costs. No torch here."""

from sobre.config.base import config
from sobre.errors import ConfigError


@config
class PriceConfig:
    """Price of the machine: the listed one of `machine`, or your own with its source."""

    machine: str = "cpu-2-cores"
    """Entry of the price list, or a chip with a rent (plan/chips.toml), which is paid for every one that computes."""
    usd_per_h: float | None = None
    """Your own price of the whole machine; none means the listed one."""
    watts: float | None = None
    """What the machine draws, to estimate its energy where nothing measures it; none assumes it from its cores."""
    source: str = ""
    """Where your own price comes from: it is printed beside every sum."""

    def __post_init__(self) -> None:
        if self.usd_per_h is not None and not 0 <= self.usd_per_h < 1e6:
            raise ConfigError(f"price.usd_per_h={self.usd_per_h} must be dollars per hour, from 0 to 1,000,000")
        if self.watts is not None and not 0 < self.watts < 1e9:
            raise ConfigError(f"price.watts={self.watts} must be above 0")
