"""Reading an answer exactly: integers, lists of integers, arithmetic expressions. Python evaluates none of it.

Strict on purpose: reinforcement learning finds every looseness. Only ASCII digits count (no other script's digits),
no leading zeros, signs only where stated, bounded lengths; whatever does not parse is None, which is a wrong answer.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

MAX_EXPRESSION = 100
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,8}")
INTEGERS = re.compile(r"(?:0|[1-9][0-9]{0,3})(?:(?:, ?| )(?:0|[1-9][0-9]{0,3})){0,31}")
LEXEME = re.compile(r" *([0-9]+|[-+*/()])")
NUMBER = re.compile(r"[1-9][0-9]{0,3}")


def read_integer(text: str) -> int | None:
    """`42` or `-7`; spaces around it are fine, anything else is not."""
    text = text.strip(" \n")
    return int(text) if INTEGER.fullmatch(text) else None


def read_integers(text: str) -> list[int] | None:
    """`3 12 41` or `3, 12, 41`: up to 32 natural numbers."""
    text = text.strip(" \n")
    return [int(n) for n in re.findall(r"[0-9]+", text)] if INTEGERS.fullmatch(text) else None


def read_expression(text: str) -> tuple[Fraction, list[int]] | None:
    """The exact value of an expression of + - * / and parentheses over positive integers, and the integers it uses.

    Refused: every other character, powers, signs before a number, leading zeros, division by zero, over-long text.
    """
    text = text.strip(" \n")
    if not 0 < len(text) <= MAX_EXPRESSION:
        return None
    lexemes = LEXEME.findall(text)
    if sum(map(len, lexemes)) != len(text.replace(" ", "")):
        return None  # the pattern skipped a foreign character
    parser = _Parser(lexemes)
    try:
        value = parser.sum()
    except (_NotAnExpression, ZeroDivisionError):
        return None
    return (value, parser.numbers) if parser.at_end else None


def is_made_of(text: str, target: int, numbers: Sequence[int]) -> bool:
    """Whether the text is an expression of exactly these numbers, each used once, with exactly this value."""
    read = read_expression(text)
    return read is not None and read[0] == target and sorted(read[1]) == sorted(numbers)


class _NotAnExpression(Exception):
    pass


class _Parser:
    """sum = product {(+|-) product}; product = atom {(*|/) atom}; atom = number | ( sum )."""

    def __init__(self, lexemes: list[str]) -> None:
        self.lexemes = lexemes
        self.position = 0
        self.numbers: list[int] = []

    @property
    def at_end(self) -> bool:
        return self.position == len(self.lexemes)

    def next_is(self, options: str) -> bool:
        return not self.at_end and self.lexemes[self.position] in options

    def take(self) -> str:
        if self.at_end:
            raise _NotAnExpression
        self.position += 1
        return self.lexemes[self.position - 1]

    def sum(self) -> Fraction:
        value = self.product()
        while self.next_is("+-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self) -> Fraction:
        value = self.atom()
        while self.next_is("*/"):
            value = value * self.atom() if self.take() == "*" else value / self.atom()
        return value

    def atom(self) -> Fraction:
        lexeme = self.take()
        if lexeme == "(":
            value = self.sum()
            if self.take() != ")":
                raise _NotAnExpression
            return value
        if not NUMBER.fullmatch(lexeme):
            raise _NotAnExpression
        self.numbers.append(int(lexeme))
        return Fraction(int(lexeme))
