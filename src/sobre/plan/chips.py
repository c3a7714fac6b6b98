"""Chips as data: what one computes, holds and moves, what it draws and what its hour costs (chips.toml).

A user's own chips stand in files of the same form, read after ours, the later over the earlier: this machine as
`sobre doctor` measured it (the chip `this`), `chips.toml` in the user's folder, and what --chips-file names.
"""

import json
import os
import tomllib
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from importlib import resources
from math import inf
from pathlib import Path
from typing import Any, Literal

from sobre.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16", "fp8", "int8", "fp4"]
KINDS: dict[Any, str] = {str: "text in quotes", bool: "true or false", (int, float): "a number"}
THIS = "this"
"""Name of the chip that `sobre doctor` measures."""
BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5625}
"""Bytes of a stored number; FP4 with a scale of one byte for each 16 numbers."""


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator and the links around it."""

    name: str
    bf16: float
    """Dense matrix products in 16 bits with sums in 32, TFLOP/s."""
    fp32: float = 0.0
    """The same in 32 bits; 0 is half of `bf16`, the rate of TF32 on every chip of the table that has it."""
    fp16: float = 0.0
    """0 is that of `bf16`."""
    fp8: float = 0.0
    int8: float = 0.0
    fp4: float = 0.0
    """The same in other formats; 0 where the chip has none, whose products then run in 16 bits."""
    measured: bool = False
    """The rates were reached by real products, instead of standing in a data sheet."""
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
    disk: float = 0.0
    """To the disk that states are saved on, GB/s; 0 where unknown."""
    usd_per_h: float | None = None
    price_source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("bf16", "memory_gb", "bandwidth", "watts", "node"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"chip {self.name}: {name}={getattr(self, name)} must be above 0")
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not 0 <= value < inf:
                raise ConfigError(f"chip {self.name}: {name}={value} must be finite and 0 or more")
        if self.node != int(self.node):
            raise ConfigError(f"chip {self.name}: node={self.node} must be a whole number of chips")
        if self.usd_per_h is not None and not self.price_source:
            raise ConfigError(f"chip {self.name}: a price needs its source and date in price_source")

    @property
    def memory_bytes(self) -> float:
        return self.memory_gb * 1e9

    @property
    def bytes_per_s(self) -> float:
        return self.bandwidth * 1e9

    def check_joined(self, chips: int) -> None:
        """Refuse chips that nothing joins."""
        if chips > 1 and not (self.network or chips <= self.node and self.link):
            which = "link and network are" if not self.link else f"network is, beyond a node of {self.node},"
            raise ConfigError(
                f"{chips:,} {self.name}: nothing joins them: their {which} 0; one chip, or another number"
            )

    def usd(self, hours: float) -> float | None:
        """The rent of this chip for some hours; None where no price is known."""
        return None if self.usd_per_h is None else hours * self.usd_per_h

    def peak(self, precision: str) -> float:
        """FLOP/s in a format; narrow formats that the chip lacks run at the rate of 16 bits."""
        if precision not in BYTES:
            raise ConfigError(f"no format {precision!r}; there are {', '.join(BYTES)}")
        if precision == "fp32":
            return (self.fp32 or self.bf16 / 2) * 1e12
        return (getattr(self, precision) or self.bf16) * 1e12

    @property
    def usual(self) -> Literal["bf16", "fp32"]:
        """What training computes in when nothing is said: 32 bits where 16 are no faster, as on older processors."""
        return "fp32" if self.peak("fp32") > self.peak("bf16") else "bf16"


def chip(name: str, own: str = "") -> Chip:
    """A chip by name, from the table or from the user's files; an unknown one lists the near ones."""
    table = chips(own)
    if name not in table:
        if name == THIS:
            raise ConfigError("this machine was not measured yet: `sobre doctor` measures it and keeps what it finds")
        near = get_close_matches(name.lower(), table, n=4, cutoff=0.4)
        wanted = f"perhaps {', '.join(near)}" if near else f"known are {', '.join(table)}"
        raise ConfigError(f"no chip {name!r}; {wanted}; or describe it in a file: --chips-file mine.toml")
    return table[name]


def chips(own: str = "") -> dict[str, Chip]:
    """Every chip of the table, and of the user's files over it."""
    found = dict(_table())
    for path in (this_file(), user_folder() / "chips.toml"):
        if path.is_file():
            found |= _from(path)
    return found | (_from(Path(own)) if own else {})


def user_folder() -> Path:
    """Where the user's own chips are looked for."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "sobre"


def this_file() -> Path:
    """Where `sobre doctor` keeps what it measured."""
    return user_folder() / "this.toml"


def this_text(measured: dict[str, float | str | bool]) -> str:
    """The file of `this_file` with what was measured now; what it held beside that (a rent, a link) stays."""
    path = this_file()
    before = tomllib.loads(path.read_text(encoding="utf-8")).get(THIS, {}) if path.is_file() else {}
    entry = before | measured
    _read(THIS, entry, str(path))
    lines = [
        "# This machine as `sobre doctor` measured it; rates in TFLOP/s, memory in GB, the rest in GB/s.",
        '# Measuring again keeps what you add, such as: usd_per_h = 0.05 and price_source = "electricity, 2026-11"',
        f"[{THIS}]",
        *(f"{key} = {_value(value)}" for key, value in entry.items()),
    ]
    return "\n".join(lines) + "\n"


def _value(value: float | str | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else f"{value:.4g}"


@cache
def _table() -> dict[str, Chip]:
    text = resources.files(__package__).joinpath("chips.toml").read_text(encoding="utf-8")
    return {name: _read(name, entry, "chips.toml") for name, entry in tomllib.loads(text).items()}


def _from(path: Path) -> dict[str, Chip]:
    try:
        mine = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable file of chips: {error}") from None
    return {name: _read(name, entry, str(path)) for name, entry in mine.items()}


def _read(name: str, entry: Any, where: str) -> Chip:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: {name} must be a table, such as [{name}] with bf16 = 100 below it")
    known = {field.name for field in fields(Chip)} - {"name"}
    if wrong := sorted(entry.keys() - known):
        raise ConfigError(f"{where}: chip {name} has no key {', '.join(wrong)}; there are {', '.join(sorted(known))}")
    needed = [field.name for field in fields(Chip) if field.name != "name" and field.default is field.default_factory]
    if missing := [key for key in needed if key not in entry]:
        raise ConfigError(f"{where}: chip {name} lacks {', '.join(missing)}")
    for key, value in entry.items():
        wanted = str if key in ("price_source", "note") else bool if key == "measured" else (int, float)
        if not isinstance(value, wanted) or isinstance(value, bool) and wanted is not bool:
            raise ConfigError(f"{where}: chip {name}: {key}={value!r} must be {KINDS[wanted]}")
    return Chip(name=name, **entry)
