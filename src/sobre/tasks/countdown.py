"""Countdown: reach a target with every given number exactly once, by + - * / and parentheses.

Any expression with the exact value is right (`score` parses it into fractions). The thought searches in a fixed order,
so that nothing in it is a guess: the target and the numbers, largest first; then a line for everything that two of them
make, with what this makes with the number left over, until that is the target. The search is complete. The target
stands beside each result, so that two neighbours are compared:

    28: 20 13 4                  the target and the numbers
    20+13=33 33-4=29:28 no       33 lies above the target, so only - and / can lead there
    20-13=7 7+4=11:28 7*4=28:28 yes
    (20-13)*4=28

Levels: 1 two numbers of 1-12, 2 three of 1-10, 3, the test's, three of 1-25, 4 three of 1-50, 5 four of 1-25.
Every result on the way, and the target, lies in 1-99, and nothing is multiplied or divided by one.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from sobre.tasks.base import NO, YES, Problem
from sobre.tasks.verify import is_made_of, read_expression

LEVELS = {1: (2, 12), 2: (3, 10), 3: (3, 25), 4: (3, 50), 5: (4, 25)}
TOP = 99
PROMPTS = {
    "en": ("Make {target} from {numbers}, each used once.", "Use {numbers} once each to reach {target}."),
    "fr": (
        "Obtiens {target} avec {numbers}, chacun une fois.",
        "Utilise {numbers} une fois chacun pour faire {target}.",
    ),
    "zh": ("用{numbers}各一次，得到{target}。", "每个数用一次：{numbers}，算出{target}。"),
}
SUMS_KEPT = 0.25
"""Share of the problems with sums and differences alone that are kept: there every pair works, so none is a search."""
BINDS = {"+": 1, "-": 1, "*": 2, "/": 2}


class Term(NamedTuple):
    """A number in hand: given, or made of given ones."""

    value: int
    text: str
    binds: int = 3
    """Strength of the last operation: 1 sum, 2 product, 3 number."""


class Made(NamedTuple):
    """What two terms make."""

    term: Term
    op: str
    line: str
    """The operation on their values, `20-13=7`."""


def join(op: str, left: Term, right: Term, value: int) -> Term:
    """`left op right`, with parentheses where reading from left to right needs them."""
    binds = BINDS[op]
    left_text = f"({left.text})" if left.binds < binds else left.text
    right_text = f"({right.text})" if right.binds <= binds else right.text
    return Term(value, f"{left_text}{op}{right_text}", binds)


def made_of(first: Term, second: Term) -> Iterator[Made]:
    """At most a sum, a difference, a product and a quotient, the larger term first."""
    big, small = (first, second) if first.value >= second.value else (second, first)
    x, y = big.value, small.value
    results = [("+", x + y), ("-", x - y)]
    if y > 1:
        results.append(("*", x * y))
        if x % y == 0:
            results.append(("/", x // y))
    for op, value in results:
        if 1 <= value <= TOP:
            yield Made(join(op, big, small, value), op, f"{x}{op}{y}={value}")


def towards(target: int, first: Term, second: Term) -> Iterator[Made]:
    """What two terms make that may be the target: it is more than both of them, or less than the larger one."""
    larger = max(first.value, second.value)
    ops = "+*" if larger < target else "-/" if larger > target else ""
    yield from (made for made in made_of(first, second) if made.op in ops)


def pairs(terms: Sequence[Term]) -> Iterator[tuple[Term, Term, list[Term]]]:
    """Every two of the terms, and those left over."""
    for i, j in combinations(range(len(terms)), 2):
        yield terms[i], terms[j], [term for k, term in enumerate(terms) if k not in (i, j)]


def attempt(target: int, first: Term, second: Term) -> tuple[list[str], str | None]:
    """The lines of what two terms make towards the target, up to it, and its expression if they make it."""
    lines = []
    for made in towards(target, first, second):
        lines.append(f"{made.line}:{target}")
        if made.term.value == target:
            return lines, made.term.text
    return lines, None


def search(terms: Sequence[Term], target: int, yes: str, no: str) -> tuple[list[str], str | None]:
    """The lines of a search over two or three terms, up to an expression that is the target; None if there is none."""
    if len(terms) == 2:
        shown, found = attempt(target, *terms)
        return [" ".join((*shown, yes if found else no))], found
    lines = []
    for first, second, (rest,) in pairs(terms):
        for made in made_of(first, second):
            shown, found = attempt(target, made.term, rest)
            lines.append(" ".join((made.line, *shown, yes if found else no)))
            if found:
                return lines, found
    return lines, None


def openings(terms: Sequence[Term]) -> Iterator[tuple[list[str], list[Term]]]:
    """Every way to come down to three terms or fewer, with the line that does it; no line if none is needed."""
    if len(terms) <= 3:
        yield [], list(terms)
        return
    for first, second, rest in pairs(terms):
        yield from (([made.line], [made.term, *rest]) for made in made_of(first, second))


def needs(target: int, rest: int) -> Iterator[int]:
    """The values that make the target together with `rest`: v+r, r-v, v-r, v*r, v/r, r/v."""
    if target != rest:
        yield abs(target - rest)
    if target + rest <= TOP:
        yield target + rest
    if rest > 1 and target % rest == 0 and target > rest:
        yield target // rest
    if rest > 1 and target * rest <= TOP:
        yield target * rest
    if target > 1 and rest % target == 0 and rest > target:
        yield rest // target


def meeting(target: int, first: Term, second: Term, rest: Term) -> str | None:
    """An expression in which two terms make what the target needs beside the rest."""
    by_value = {made.term.value: made.term for made in reversed(list(made_of(first, second)))}
    for value in needs(target, rest.value):
        if value in by_value:
            return next(made.term.text for made in made_of(by_value[value], rest) if made.term.value == target)
    return None


def solutions(terms: Sequence[Term], target: int, rng: random.Random) -> Iterator[str]:
    """Expressions of three or four terms that are the target, in random order."""
    ways = [three for _, three in openings(terms)]
    rng.shuffle(ways)
    for three in ways:
        found = {}
        for first, second, (rest,) in pairs(three):
            text = meeting(target, first, second, rest)
            found[(*sorted((first.value, second.value)), rest.value, text)] = text
        texts = list(found.values())
        rng.shuffle(texts)
        yield from (text for text in texts if text)


def draw(rng: random.Random, difficulty: int) -> tuple[list[int], int, str]:
    """The numbers, a target made of them, and an expression that is the target."""
    n_numbers, top = LEVELS[difficulty]
    while True:
        numbers = [rng.randint(1, top) for _ in range(n_numbers)]
        given = [Term(n, str(n)) for n in numbers]
        terms = given
        while len(terms) > 1:
            first, second, *rest = rng.sample(terms, len(terms))
            ways = [made.term for made in made_of(first, second)]
            terms = [rng.choice(ways), *rest] if ways else []
        needs_search = terms and ("*" in terms[0].text or "/" in terms[0].text)
        if terms and terms[0].value > 1 and (needs_search or rng.random() < SUMS_KEPT):
            target = terms[0].value
            if n_numbers == 2:
                return numbers, target, next(m.term.text for m in made_of(*given) if m.term.value == target)
            return numbers, target, next(solutions(given, target, rng))


def solve(numbers: Sequence[int], target: int, yes: str, no: str) -> tuple[list[str], str]:
    """The lines of a search that finds the target, and what it finds. Four numbers come down to three at once."""
    terms = [Term(n, str(n)) for n in sorted(numbers, reverse=True)]
    shown = f"{target}: {' '.join(term.text for term in terms)}"
    for opening, few in openings(terms):
        lines, found = search(few, target, yes, no)
        if found:
            return [shown, *opening, *lines], found
    raise AssertionError(f"{target} was drawn from {numbers}")


class Countdown:
    name = "countdown"

    def problem(self, rng: random.Random, lang: str, difficulty: int) -> Problem:
        numbers, target, answer = draw(rng, difficulty)
        shown = ("、" if lang == "zh" else " ").join(map(str, numbers))
        prompt = rng.choice(PROMPTS[lang]).format(target=target, numbers=shown)
        key = f"{self.name}:{' '.join(map(str, sorted(numbers)))}={target}"
        data = {"numbers": numbers, "target": target}
        return Problem(self.name, lang, difficulty, prompt, answer, key, data)

    def thought(self, problem: Problem, rng: random.Random) -> str:
        lines, found = self._solve(problem)
        return "\n".join((*lines, f"{found}={problem.data['target']}"))

    def found(self, problem: Problem) -> str:
        return self._solve(problem)[1]

    def _solve(self, problem: Problem) -> tuple[list[str], str]:
        return solve(problem.data["numbers"], problem.data["target"], YES[problem.lang], NO[problem.lang])

    def score(self, problem: Problem, answer: str) -> bool:
        return is_made_of(answer, problem.data["target"], problem.data["numbers"])

    def credit(self, problem: Problem, answer: str) -> float:
        """1 for a right answer; for another expression half the share of its numbers, or the given, that agree."""
        if self.score(problem, answer):
            return 1.0
        used, given = Counter((read_expression(answer) or (0, []))[1]), Counter(problem.data["numbers"])
        return (used & given).total() / max(used.total(), given.total()) / 2
