"""Chips as data: what one computes, holds and moves, what it draws and what its hour costs (chips.toml).

A user's own chips stand in a file of the same form, read after ours: `--chips-file mine.toml`, or this machine as
`sobre doctor --json` measured it.
"""

import tomllib
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from sobre.errors import ConfigError

Precision = Literal["bf16", "fp16", "fp8", "int8", "fp4"]
BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5625}
"""Bytes of a stored number; FP4 with a scale of one byte for each 16 numbers."""


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator and the links around it."""

    name: str
    bf16: float
    """Dense matrix products in 16 bits with sums in 32, TFLOP/s."""
    fp8: float = 0.0
    int8: float = 0.0
    fp4: float = 0.0
    """The same in other formats; 0 where the chip has none."""
    memory_gb: float
    bandwidth: float
    """Of the memory, GB/s."""
    link: float
    """To the other chips of its node, both directions together, GB/s; 0 where there is no other."""
    network: float
    """To other nodes, both directions together, GB/s of each chip."""
    node: int = 8
    """Chips that the link joins."""
    watts: float
    """Thermal design power."""
    usd_per_h: float | None = None
    price_source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("bf16", "memory_gb", "bandwidth", "watts", "node"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"chip {self.name}: {name}={getattr(self, name)} must be above 0")
        if self.usd_per_h is not None and not self.price_source:
            raise ConfigError(f"chip {self.name}: a price needs its source and date in price_source")

    @property
    def memory_bytes(self) -> float:
        return self.memory_gb * 1e9

    @property
    def bytes_per_s(self) -> float:
        return self.bandwidth * 1e9

    def usd(self, hours: float) -> float | None:
        """The rent of this chip for some hours; None where no price is known."""
        return None if self.usd_per_h is None else hours * self.usd_per_h

    def peak(self, precision: str) -> float:
        """FLOP/s in a format; formats that the chip lacks run at the rate of 16 bits."""
        if precision not in BYTES:
            raise ConfigError(f"no format {precision!r}; there are {', '.join(BYTES)}")
        rate = self.bf16 if precision in ("bf16", "fp16", "fp32") else getattr(self, precision)
        return (rate or self.bf16) * 1e12


def chip(name: str, own: str = "") -> Chip:
    """A chip by name, from the table or from the user's file; an unknown one lists the near ones."""
    table = chips(own)
    if name not in table:
        near = get_close_matches(name.lower(), table, n=4, cutoff=0.4)
        wanted = f"perhaps {', '.join(near)}" if near else f"known are {', '.join(table)}"
        raise ConfigError(f"no chip {name!r}; {wanted}; or describe it in a file: --chips-file mine.toml")
    return table[name]


def chips(own: str = "") -> dict[str, Chip]:
    """Every chip of the table, and of the user's file over it."""
    text = resources.files(__package__).joinpath("chips.toml").read_text(encoding="utf-8")
    found = {name: _read(name, entry, "chips.toml") for name, entry in tomllib.loads(text).items()}
    if own:
        try:
            mine = tomllib.loads(Path(own).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{own}: not a readable file of chips: {error}") from None
        found |= {name: _read(name, entry, own) for name, entry in mine.items()}
    return found


def _read(name: str, entry: Any, where: str) -> Chip:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: {name} must be a table, such as [{name}] with bf16 = 100 below it")
    known = {field.name for field in fields(Chip)} - {"name"}
    if wrong := sorted(entry.keys() - known):
        raise ConfigError(f"{where}: chip {name} has no key {', '.join(wrong)}; there are {', '.join(sorted(known))}")
    needed = [field.name for field in fields(Chip) if field.name != "name" and field.default is field.default_factory]
    if missing := [key for key in needed if key not in entry]:
        raise ConfigError(f"{where}: chip {name} lacks {', '.join(missing)}")
    return Chip(name=name, **entry)
