"""Elementary operations written as a line of a thought, one digit at a time: `47+38=77+8=85`, `68*7=420+56=476`.

A line is a chain of equal terms in which every step is a look-up that a model of a million parameters can learn: a sum
or difference with one digit that is not zero, an entry of the multiplication table. Products keep one factor below ten
and the other below a hundred, so that no step needs more than that.
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
    """The operation, what it becomes one digit at a time, and its result: a chain of equal terms.

    162-72=92-2=90, 65-92=-(92-65)=-(32-5)=-27, 68*7=420+56=470+6=476, 162/9=10+72/9=10+8=18.
    """
    return "=".join((f"{left}{op}{right}", *_between(op, left, right), str(apply(op, left, right))))


def _between(op: str, left: int, right: int) -> list[str]:
    """What stands between the operation and its result; nothing where one look-up does."""
    if op == "+":
        return _by_digits("+", left, right)
    if op == "-":
        if left < right:
            return [f"-({term})" for term in (f"{right}-{left}", *_by_digits("-", right, left))]
        return _by_digits("-", left, right)
    if op == "*":
        factor, (tens, units) = min(left, right), divmod(max(left, right), 10)
        if not (tens and units and factor > 1):
            return []
        return [f"{10 * tens * factor}+{units * factor}", *_by_digits("+", 10 * tens * factor, units * factor)]
    tens, units = divmod(left // right, 10)
    if not (tens and units and right > 1):
        return []
    return [f"{10 * tens}+{units * right}/{right}", f"{10 * tens}+{units}"]


def _by_digits(op: str, left: int, right: int) -> list[str]:
    """left + right or left - right after each digit of `right` but the last has been used up, the highest first."""
    digits, terms = str(right), []
    parts = [int(digit) * 10 ** (len(digits) - 1 - place) for place, digit in enumerate(digits) if digit != "0"]
    for part in parts[:-1]:
        left, right = apply(op, left, part), right - part
        terms.append(f"{left}{op}{right}")
    return terms
