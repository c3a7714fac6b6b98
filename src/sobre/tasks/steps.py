"""Elementary operations written as a line of a thought: `47+38=85`, `68*7=420+56=476`.

A model of a million parameters learns sums of three digits and the small multiplication table as single steps; a
longer product is therefore written as tens and units. Products keep one factor below ten and the other below a
hundred, so that no step needs more than that.
"""

import operator
from collections.abc import Callable

LIMIT = 999
"""No intermediate result exceeds it."""

_APPLY: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}


def apply(op: str, left: int, right: int) -> int:
    """The integer result; a quotient must be exact (`is_easy` says so)."""
    return _APPLY[op](left, right)


def is_easy(op: str, left: int, right: int) -> bool:
    """Whether the operation is one that a thought may do: small, exact, and with a natural result."""
    if op == "+":
        return left + right <= LIMIT
    if op == "-":
        return left >= right
    if op == "*":
        return min(left, right) <= 9 and max(left, right) <= 99
    return right > 0 and left % right == 0


def line(op: str, left: int, right: int) -> str:
    """The operation and its result; a product of a two-digit number goes by tens and units."""
    result = apply(op, left, right)
    tens, units = divmod(max(left, right), 10)
    if op == "*" and tens and units and min(left, right) > 1:
        factor = min(left, right)
        return f"{left}*{right}={10 * tens * factor}+{units * factor}={result}"
    return f"{left}{op}{right}={result}"
