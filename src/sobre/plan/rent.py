"""What an hour of the machine that trains costs: the user's own price, a listed machine's, or its chips' rent."""

from difflib import get_close_matches

from sobre.errors import ConfigError
from sobre.ledger.config import PriceConfig
from sobre.ledger.prices import Price, price, prices
from sobre.plan.chips import chips


def rent(cfg: PriceConfig, *, n_chips: int = 1, n_nodes: int = 1) -> Price:
    """Dollars per hour of all machines. Raises ConfigError for a name that is in neither list, or has no rent."""
    listed, table = prices(), chips()
    if cfg.usd_per_h is not None or cfg.machine in listed:
        return price(cfg).times(n_nodes)
    if cfg.machine not in table:
        names = {*listed, *table}
        near = get_close_matches(cfg.machine, names, n=4, cutoff=0.3) or sorted(names)
        raise ConfigError(f"no price for {cfg.machine!r}; listed: {', '.join(near)}; or set budget.price.usd_per_h")
    chip = table[cfg.machine]
    if chip.usd_per_h is None:
        raise ConfigError(f"chip {cfg.machine!r} has no rent in the table; set budget.price.usd_per_h")
    return Price(chip.usd_per_h * n_chips, f"{n_chips} x {cfg.machine}: {chip.price_source}")
