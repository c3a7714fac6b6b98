"""The scaling law that we fitted ourselves, for budgets of minutes that no published law reaches.

    L(N, D) = e + a / N ** alpha + b / D ** beta        nats per token of held-out text

N are the parameters that a token is multiplied by, output head included and embedding left out; D the trained tokens.
`sobre bench laws` runs the cells (size x FLOPs) and fits; cells and constants lie in own_law.toml with the command,
commit, machine and text that they come from. The fit is of relative errors: exponents on a grid, the rest by least
squares, none below 0. How sure it is, is told by leaving out each cell in turn and predicting it from the others.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from math import log, sqrt
from operator import mul
from typing import Any

EXPONENTS = tuple(round(0.1 + 0.05 * step, 2) for step in range(19))
"""From 0.1 to 1, for N and for D."""
LEAST_CELLS = 6
"""Five constants are not fitted on fewer."""
BAND = 2.0
"""A prediction's span, in root mean square errors of leaving one out."""
FARTHEST = 10.0
"""How many times more compute than the largest run, or fewer than the smallest, a prediction is still made for."""


@dataclass(frozen=True)
class Point:
    """One finished training."""

    model: str
    """Width x layers."""
    n: float
    d: float
    flops: float
    loss: float
    """Nats per token of held-out text."""


@dataclass(frozen=True)
class Fit:
    """The constants of L(N, D) = e + a / N ** alpha + b / D ** beta."""

    e: float
    a: float
    alpha: float
    b: float
    beta: float

    def loss(self, n: float, d: float) -> float:
        return self.e + self.a / n**self.alpha + self.b / d**self.beta

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class OwnLaw:
    """The committed law with its range."""

    fit: Fit
    error: float
    """Root mean square of the relative errors of leaving one cell out."""
    bytes_per_token: float
    vocab_size: int
    seq_len: int
    text: str
    """In words: what was learned; other documents of it were scored."""
    source: str
    """Command, commit, machine, date."""
    points: tuple[Point, ...]

    @property
    def flops(self) -> tuple[float, float]:
        """Least and most of the runs."""
        return min(p.flops for p in self.points), max(p.flops for p in self.points)

    @property
    def sizes(self) -> tuple[float, float]:
        """Smallest and largest N."""
        return min(p.n for p in self.points), max(p.n for p in self.points)

    def bits(self, loss: float) -> float:
        """Nats per token as bits per byte of the text."""
        return loss / log(2) / self.bytes_per_token


def fit(points: Sequence[Point]) -> Fit:
    """The constants of the least sum of squared relative errors."""
    found = min((_linear(points, alpha, beta) for alpha in EXPONENTS for beta in EXPONENTS), key=lambda one: one[0])
    return found[1]


def left_out(points: Sequence[Point]) -> list[float]:
    """Relative error of each cell, predicted by a fit to the others."""
    errors = []
    for point in points:
        others = [other for other in points if other is not point]
        errors.append(fit(others).loss(point.n, point.d) / point.loss - 1)
    return errors


def spread(errors: Sequence[float]) -> float:
    """Root mean square."""
    return sqrt(sum(error**2 for error in errors) / len(errors))


@dataclass(frozen=True)
class Expected:
    """Bits per byte that a pretraining reaches if it reads such text as the law's, with its span."""

    value: float
    low: float
    high: float
    text: str
    beyond: str
    """What of the law's range is left, in words; empty within it."""

    def in_words(self) -> str:
        far = f", {self.beyond}" if self.beyond else ""
        span = f"{self.value:.2f} bits per byte ({self.low:.2f} to {self.high:.2f})"
        return f"pretraining on {self.text} would reach {span}, by a law of our own{far}"


def expected(n: float, d: float, flops: float) -> Expected | None:
    """What a training of `d` tokens and `flops` FLOPs reaches with N = `n`; None too far from what was measured."""
    law = own_law()
    (least, most), (smallest, largest) = law.flops, law.sizes
    if not least / FARTHEST <= flops <= most * FARTHEST:
        return None
    outside = [
        f"{what} {value:.2g} lies outside {low:.2g} to {high:.2g}"
        for what, value, low, high in (("compute", flops, least, most), ("size", n, smallest, largest))
        if not low * 0.99 <= value <= high * 1.01
    ]
    bits = law.bits(law.fit.loss(n, d))
    band = BAND * law.error * bits
    beyond = f"extrapolated: {' and '.join(outside)}" if outside else ""
    return Expected(bits, bits - band, bits + band, law.text, beyond)


@cache
def own_law() -> OwnLaw:
    """The law of own_law.toml."""
    document: dict[str, Any] = tomllib.loads(
        resources.files("sobre.plan").joinpath("own_law.toml").read_text(encoding="utf-8")
    )
    law = document["law"]
    constants = Fit(**{name: law.pop(name) for name in ("e", "a", "alpha", "b", "beta")})
    return OwnLaw(fit=constants, points=tuple(Point(**cell) for cell in document["cells"]), **law)


def _linear(points: Sequence[Point], alpha: float, beta: float) -> tuple[float, Fit]:
    """Squared relative errors and constants for given exponents; a term that would be negative is left out."""
    columns = [
        [1 / p.loss for p in points],
        [p.n**-alpha / p.loss for p in points],
        [p.d**-beta / p.loss for p in points],
    ]
    norms = [sqrt(sum(value**2 for value in column)) for column in columns]
    units = [[value / norm for value in column] for column, norm in zip(columns, norms, strict=True)]
    found = []
    for kept in ((0, 1, 2), (0, 1), (0, 2), (1, 2), (0,), (1,), (2,)):
        inner = [[sum(map(mul, units[i], units[j])) for j in kept] for i in kept]
        weights = _solve(inner, [sum(units[i]) for i in kept])
        if weights is None or min(weights) < 0:
            continue
        e, a, b = (weights[kept.index(i)] / norms[i] if i in kept else 0.0 for i in range(3))
        law = Fit(e, a, alpha, b, beta)
        found.append((sum((law.loss(p.n, p.d) / p.loss - 1) ** 2 for p in points), law))
        if len(kept) == 3:
            break  # nothing that leaves a term out is better
    return min(found, key=lambda one: one[0])


def _solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """Gauss for a few unknowns, rows and columns of unit size; None where the columns are one and the same."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(size):
        if rows[column][column] < 1e-10:  # what is left of a column beside those before it
            return None
        for row in range(column + 1, size):
            factor = rows[row][column] / rows[column][column]
            rows[row] = [value - factor * above for value, above in zip(rows[row], rows[column], strict=True)]
    found = [0.0] * size
    for index in reversed(range(size)):
        known = sum(rows[index][column] * found[column] for column in range(index + 1, size))
        found[index] = (rows[index][size] - known) / rows[index][index]
    return found
