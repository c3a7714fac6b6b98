"""How sure a figure is: intervals, the unbiased pass@k, and the comparison of two models on the same problems.

wilson: E. B. Wilson 1927, the score interval of a share; honest near 0 and 1 and for small n, where the usual
p +- 1.96 s is not. pass_at_k: Chen et al. 2021 (arXiv 2107.03374, 2.1). paired: the exact McNemar test, two-sided,
because two models judged on the same problems differ only where one is right and the other wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt

import numpy as np

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Share:
    """`right` of `n`, with the 95 % Wilson interval. With n=0 nothing is known: value 0, interval 0..1."""

    n: int
    right: int
    value: float
    ci_low: float
    ci_high: float


def wilson(right: int, n: int, z: float = Z_95) -> Share:
    """The share right/n and where the true one may lie."""
    if not 0 <= right <= n:
        raise ValueError(f"right={right} must lie in 0..n={n}")
    if n == 0:
        return Share(0, 0, 0.0, 0.0, 1.0)
    p, spread = right / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(p * (1 - p) / n + spread / (4 * n))
    return Share(n, right, p, max(0.0, centre - half), min(1.0, centre + half))


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that k responses drawn without return from n, of which `right` are right, hold at least one right one."""
    if not 1 <= k <= n or not 0 <= right <= n:
        raise ValueError(f"pass@{k} needs k in 1..n={n} and right={right} in 0..n")
    return 1 - comb(n - right, k) / comb(n, k)


def bootstrap(values: Sequence[float], *, seed: int, resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of the mean: for figures that are not shares, such as pass@k over problems."""
    if not len(values):
        raise ValueError("bootstrap of no values; at least one is needed")
    x = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    low, high = np.quantile(x[draws].mean(1), [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Paired:
    """Two models on the same n problems."""

    n: int
    difference: float
    """Share right of b minus share right of a."""
    ci_low: float
    ci_high: float
    only_a: int
    only_b: int
    p_value: float
    """Of seeing so uneven a split of the problems on which they differ if neither were better."""


def paired(a: Sequence[bool], b: Sequence[bool]) -> Paired:
    """Compare b with a, item by item."""
    if len(a) != len(b) or not len(a):
        raise ValueError(f"paired comparison needs two lists of one length above 0, got {len(a)} and {len(b)}")
    n = len(a)
    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    differing, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(comb(differing, i) for i in range(fewer + 1)) / 2**differing
    difference = (only_b - only_a) / n
    half = Z_95 * sqrt(differing - (only_b - only_a) ** 2 / n) / n
    return Paired(n, difference, difference - half, difference + half, only_a, only_b, min(1.0, 2 * tail))
