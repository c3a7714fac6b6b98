"""What an hour costs, and who says so: the dated list of prices.toml, or the user's own price."""

import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from typing import Any

from sobre.errors import ConfigError
from sobre.ledger.config import PriceConfig


@dataclass(frozen=True)
class Price:
    """Dollars per hour of the whole machine, never shown without its source."""

    usd_per_h: float
    source: str

    def usd(self, seconds: float) -> float:
        """What `seconds` of the machine cost."""
        return seconds / 3600 * self.usd_per_h

    def times(self, n_machines: int) -> "Price":
        """The price of as many such machines."""
        if n_machines == 1:
            return self
        return Price(self.usd_per_h * n_machines, f"{n_machines} machines at {self.usd_per_h:g} usd/h: {self.source}")


GRID_KG_PER_KWH = 0.48
"""Carbon dioxide of a kilowatt-hour: the world's mean in 2023 (Ember, Global Electricity Review 2024)."""


def co2_kg(joules: float) -> float:
    """Carbon dioxide of an amount of energy, with the world's mean grid."""
    return joules / 3.6e6 * GRID_KG_PER_KWH


def price(cfg: PriceConfig) -> Price:
    """The user's own price if there is one, else the listed one."""
    if cfg.usd_per_h is not None:
        return Price(cfg.usd_per_h, cfg.source or "given by the recipe, source not stated")
    listed = prices()
    if cfg.machine not in listed:
        near = get_close_matches(cfg.machine, listed, n=3, cutoff=0.3) or sorted(listed)
        raise ConfigError(f"no price for {cfg.machine!r}; listed: {', '.join(near)}; or set budget.price.usd_per_h")
    return listed[cfg.machine]


def prices() -> dict[str, Price]:
    """The price list; the date is part of the source."""
    text = resources.files(__package__).joinpath("prices.toml").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = tomllib.loads(text)
    return {
        name: Price(float(entry["usd_per_h"]), f"{entry['source']}, {entry['date']}") for name, entry in entries.items()
    }
