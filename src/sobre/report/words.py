"""Numbers as people read them. Every function takes None as "unknown" and says so."""

import math

UNKNOWN = "unknown"
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys(
    range(127, 160), 0x2421
)


def number(value: float | None, digits: int = 3) -> str:
    """1234567 -> 1.23 M; small whole numbers stay whole."""
    if value is None:
        return UNKNOWN
    if value == int(value) and abs(value) < 10_000:
        return f"{int(value):,}"
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale * (1 - 0.5 * 10**-digits):
            return f"{_significant(value / scale, digits)} {unit}"
    return _significant(value, digits)


def flops(value: float | None, digits: int = 3) -> str:
    """3.2e15 -> 3.20 PFLOP."""
    if value is None:
        return UNKNOWN
    for unit, scale in (("YFLOP", 1e24), ("ZFLOP", 1e21), ("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if value >= scale * 0.9995:
            return f"{_significant(value / scale, digits)} {unit}"
    return f"{_significant(value / 1e9, digits)} GFLOP" if value else "0"


def duration(seconds: float | None) -> str:
    """418.2 -> 6 min 58 s."""
    if seconds is None:
        return UNKNOWN
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent(share: float | None, digits: int = 1) -> str:
    return UNKNOWN if share is None else f"{100 * share:.{digits}f} %"


def usd(value: float | None) -> str:
    """0.01234 -> $0.0123; a cent and more gets cents, less keeps three figures."""
    if value is None:
        return UNKNOWN
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${_significant(value, 3)}"


def usd_like(value: float | None, total: float | None) -> str:
    """A sum with as many decimals as `total` needs for three figures, so that a column lines up."""
    if value is None or not total:
        return usd(value)
    return f"${value:,.{max(2, 2 - math.floor(math.log10(total)))}f}"


def energy(joules: float | None) -> str:
    if joules is None:
        return UNKNOWN
    return f"{_significant(joules / 3600, 3)} Wh" if joules < 3.6e6 else f"{_significant(joules / 3.6e6, 3)} kWh"


def visible(text: str) -> str:
    """Control characters as pictures: what a model wrote must not steer a terminal, and is no HTML."""
    return text.translate(_PICTURES)


def _significant(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(0, places)}f}"
