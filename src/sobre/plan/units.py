"""Numbers as people write them, read strictly: 14.8T tokens, 32k of context, 2048 chips."""

import re

from sobre.errors import ConfigError

SCALES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e\d{1,2})?)([kKMBGT]?)", re.ASCII)
CONTEXT = re.compile(r"(\d+)([kK]?)", re.ASCII)


def amount(text: str, what: str) -> float:
    """`14.8T`, `600B`, `1.5e12` or `2000`; K, M, B (or G) and T are thousands, powers of ten."""
    match = NUMBER.fullmatch(text)
    if match is None or not float(match[1]) or round(float(match[1]) * SCALES[match[2]], 3) % 1:
        raise ConfigError(f"{what} {text!r} is not understood; write a number with K, M, B or T, such as 14.8T or 600B")
    return float(match[1]) * SCALES[match[2]]


def context(text: str, what: str) -> int:
    """`4096` or `32k`: lengths of sequences count k as 1,024."""
    match = CONTEXT.fullmatch(text)
    if match is None or not int(match[1]):
        raise ConfigError(f"{what} {text!r} is not understood; write a length such as 4096 or 32k (32 x 1,024)")
    return int(match[1]) * (1024 if match[2] else 1)
