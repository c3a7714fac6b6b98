"""What an answer costs: its share of the machine's time at the machine's price per hour.

The bridge measures the share (bridge.py): the seconds of every engine step, split among the requests it served. Loading
and waiting cost nobody anything; the idle hours are the owner's.
"""

from sobre.ledger.config import PriceConfig
from sobre.ledger.prices import Price, price


def machine_price(usd_per_h: float | None) -> Price:
    """The price given on the command line, else the ledger's listed one."""
    return price(PriceConfig(usd_per_h=usd_per_h, source="" if usd_per_h is None else "--price-usd-per-h"))


def cost_basis(machine: Price, seconds: float) -> str:
    """How the cost came about, in words."""
    return f"{seconds:.6f} s of this machine's engine time at {machine.usd_per_h:g} USD per hour ({machine.source})"


def usd_per_million(machine: Price, tokens_per_s: float) -> float:
    """Price of a million tokens at this speed."""
    return machine.usd(1e6 / tokens_per_s)
