"""Arithmetic of several steps: `(47+38)*3-12`. The thought does one operation a line, in reading order, and after each
writes what is left to do, so that the next operation stands whole in the line above it; one left alone is done at once.

Levels (operations; numbers): 1 (1; 0-20), 2 (1-2; 0-50), 3, the test's (2-4; 0-99), 4 (4-5; 0-99), 5 (5-6; 0-99).
A product has one factor of at most 9; results stay natural, except that from level 3 on the last operation may be
a difference below zero.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from sobre.tasks.base import Problem
from sobre.tasks.steps import apply, is_easy, line
from sobre.tasks.verify import read_integer

LEVELS = {1: (1, 1, 20), 2: (1, 2, 50), 3: (2, 4, 99), 4: (4, 5, 99), 5: (5, 6, 99)}
PROMPTS = {
    "en": ("Compute {}", "What is {}?"),
    "fr": ("Calcule {}", "Combien font {} ?"),
    "zh": ("计算{}", "{}等于多少？"),
}
BINDS = {"+": 1, "-": 1, "*": 2}


class Expr(NamedTuple):
    """An expression as it is read, and its value."""

    text: str
    value: int
    binds: int
    """Strength of the last operation: 1 sum, 2 product, 3 number."""
    key: str
    """The text with the operands of + and * in a fixed order, so that 3+4 and 4+3 are one problem."""
    parts: "tuple[str, Expr, Expr] | None" = None
    """The last operation and its operands; None of a number."""


def number(value: int) -> Expr:
    return Expr(str(value), value, 3, str(value))


def combine(op: str, left: Expr, right: Expr) -> Expr:
    """`left op right`, with parentheses where reading from left to right needs them."""
    binds = BINDS[op]
    left_text = f"({left.text})" if left.binds < binds else left.text
    right_text = f"({right.text})" if right.binds <= binds else right.text
    keys = (left.key, right.key) if op == "-" else sorted((left.key, right.key))
    value = apply(op, left.value, right.value)
    return Expr(f"{left_text}{op}{right_text}", value, binds, f"({op.join(keys)})", (op, left, right))


def reduce(op: str, left: Expr, right: Expr) -> tuple[str, Expr]:
    """The line that does the first operation of `left op right`, and what is left to do."""
    if left.parts:
        shown, left = reduce(*left.parts)
    elif right.parts:
        shown, right = reduce(*right.parts)
    else:
        return line(op, left.value, right.value), number(apply(op, left.value, right.value))
    return shown, combine(op, left, right)


def work(expr: Expr) -> Iterator[str]:
    """The lines of a thought: each operation, and what is left after it unless it is one operation or none."""
    while expr.parts:
        shown, expr = reduce(*expr.parts)
        yield shown
        if expr.parts and any(operand.parts for operand in expr.parts[1:]):
            yield expr.text


def draw(rng: random.Random, n_ops: int, top: int, below_zero: bool = False) -> Expr:
    """A random expression of n_ops operations over 0..top; only its last difference may fall below zero."""
    if n_ops == 0:
        return number(rng.randint(0, top))
    op = rng.choice("++--**")
    if op == "*":
        other, factor = draw(rng, n_ops - 1, top), number(rng.randint(2, 9))
        fits = other.value <= (9 if top <= 20 else 99)
        left, right = (other, factor) if rng.random() < 0.5 else (factor, other)
        return combine("*" if fits else "+", left, right)
    n_left = rng.randrange(n_ops)
    left, right = draw(rng, n_left, top), draw(rng, n_ops - 1 - n_left, top)
    if op == "+" and is_easy("+", left.value, right.value):
        return combine("+", left, right)
    if left.value < right.value and not below_zero:
        left, right = right, left
    return combine("-", left, right)


class Arithmetic:
    name = "arithmetic"

    def problem(self, rng: random.Random, lang: str, difficulty: int) -> Problem:
        low, high, top = LEVELS[difficulty]
        expr = draw(rng, rng.randint(low, high), top, below_zero=difficulty >= 3)
        prompt = rng.choice(PROMPTS[lang]).format(expr.text)
        data = {"expression": expr.text, "lines": list(work(expr))}
        return Problem(self.name, lang, difficulty, prompt, str(expr.value), f"{self.name}:{expr.key}", data)

    def thought(self, problem: Problem, rng: random.Random) -> str:
        return "\n".join(problem.data["lines"])

    def score(self, problem: Problem, answer: str) -> bool:
        return read_integer(answer) == int(problem.answer)
