"""The budget as the user writes it: "10m" and its kin, read strictly.

Every form becomes seconds of the machine or model FLOPs. Dollars are hours times the stated price; device-hours are
hours times the number of devices.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sobre.errors import ConfigError

FORMS = "90s, 10m, 1h (time), 20usd (money), 2gpuh (device-hours) or 3e18flop (arithmetic)"
MIN_SECONDS = 90.0
"""Start, calibration, data, tokenizer, evaluations and report are planned with at least 25 s (plan/solve.py), whatever
the model: below this, less than 70 % of the seconds would be training."""
MIN_FLOPS = 1e11
"""Tens of batches of the smallest model of the ladder. Whether a recipe can do anything with it, its plan says."""
MAX_SECONDS = 366 * 86400.0
"""A year of one machine: whoever asks for more has mistyped."""
MAX_FLOPS = 1e27

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "gpuh": 3600.0}
SHAPE = re.compile(r"(?P<number>\d+(\.\d+)?(e\d{1,2})?)(?P<unit>s|m|h|usd|gpuh|flop)", re.ASCII)
NEAR = {
    **dict.fromkeys(["sec", "secs", "second", "seconds"], "s"),
    **dict.fromkeys(["min", "mins", "minute", "minutes", "mn"], "m"),
    **dict.fromkeys(["hr", "hrs", "hour", "hours"], "h"),
    **dict.fromkeys(["$", "dollar", "dollars", "eur"], "usd"),
    **dict.fromkeys(["flops"], "flop"),
    **dict.fromkeys(["gpu-h", "gpuhours", "gpuhour", "gpu-hours"], "gpuh"),
}


@dataclass(frozen=True)
class Budget:
    """What may be spent, in the unit that the meter counts."""

    kind: Literal["seconds", "flops"]
    amount: float
    """Seconds of the machine, or model FLOPs of every stage."""
    price_usd_per_h: float
    text: str
    """As the user wrote it."""

    @property
    def usd(self) -> float | None:
        """What the budget costs; unknown for FLOPs until the machine is measured."""
        return self.amount / 3600 * self.price_usd_per_h if self.kind == "seconds" else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "kind": self.kind,
            "amount": self.amount,
            "price_usd_per_h": self.price_usd_per_h,
        }


def parse_budget(text: str, *, price_usd_per_h: float, n_devices: int = 1) -> Budget:
    """Read a budget; raise a ConfigError that shows the forms, or the smallest budget that works."""
    match = SHAPE.fullmatch(text)
    if match is None:
        raise ConfigError(f"budget {text!r} is not understood{_hint(text)}; write {FORMS}")
    number, unit = float(match["number"]), match["unit"]
    if unit == "flop":
        _check(text, number, MIN_FLOPS, MAX_FLOPS, lambda flops: f"{flops:.0e}flop".replace("e+", "e"))
        return Budget("flops", number, price_usd_per_h, text)
    if unit == "usd":
        if price_usd_per_h <= 0:
            raise ConfigError(f"budget {text!r} needs a price, and this machine's is 0; set budget.price.usd_per_h")
        scale, show = 3600 / price_usd_per_h, lambda s: f"{_up(s / 3600 * price_usd_per_h)}usd"
    elif unit == "gpuh":
        scale, show = 3600 / n_devices, lambda s: f"{_up(s / 3600 * n_devices)}gpuh"
    else:
        scale, show = SECONDS[unit], lambda s: f"{s:.0f}s" if s < 86400 else f"{s / 3600:.0f}h"
    _check(text, number * scale, MIN_SECONDS, MAX_SECONDS, show)
    return Budget("seconds", number * scale, price_usd_per_h, text)


def _check(text: str, amount: float, least: float, most: float, show: Callable[[float], str]) -> None:
    if amount < least:
        raise ConfigError(f"budget {text!r} is too small: the smallest that works here is {show(least)}")
    if amount > most:
        raise ConfigError(f"budget {text!r} is more than one machine can spend in a year; the largest is {show(most)}")


def _up(value: float) -> str:
    """Four significant digits, rounded up, so that the number shown is itself accepted."""
    digits = f"{value * 1.0005:.3e}"
    return f"{float(digits):.10f}".rstrip("0").rstrip(".")


def _hint(text: str) -> str:
    """What the user probably meant, or nothing."""
    squeezed = re.sub(r"[\s_,]", "", text.strip().lower())
    dollars = re.fullmatch(r"\$(\d+(?:\.\d+)?)", squeezed)
    if dollars:
        return f" (did you mean {dollars[1]}usd?)"
    if re.fullmatch(r"\d+(\.\d+)?", squeezed):
        return f" (no unit: did you mean {squeezed}m?)"
    parts = re.fullmatch(r"(?P<number>\d+(?:\.\d+)?(?:e\+?\d{1,2})?)(?P<unit>[a-z$-]+)", squeezed)
    if parts is None:
        return ""
    fixed = parts["number"].replace("+", "") + NEAR.get(parts["unit"], parts["unit"])
    return f" (did you mean {fixed}?)" if SHAPE.fullmatch(fixed) else ""
