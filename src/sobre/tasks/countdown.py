"""Countdown: reach a target with every given number exactly once, by + - * / and parentheses.

Any expression with the exact value is right (`score` parses it into fractions). The thought searches: it takes two
numbers, writes what they make, then what the target needs beside the number left over; where the two lists meet is
the solution, otherwise it goes back and takes another pair. Three pairs are all there are, so the search is complete:

    20+13=30+3=33 20-13=10-3=7     what 20 and 13 make
    68-7=61 68+7=75 no             what 68 needs beside 7
    20+7=27 20-7=13 ...

Levels: 1 two numbers of 1-12, 2 three of 1-10, 3, the test's, three of 1-25, 4 three of 1-50, 5 four of 1-25.
Every result on the way, and the target, lies in 1-99, and nothing is multiplied or divided by one.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from sobre.tasks.base import NO, YES, Problem
from sobre.tasks.steps import line
from sobre.tasks.verify import read_expression

LEVELS = {1: (2, 12), 2: (3, 10), 3: (3, 25), 4: (3, 50), 5: (4, 25)}
TOP = 99
N_FAILED = (0, 0, 0, 1, 1, 2)
"""Failed attempts shown before the right one, if so many pairs fail."""
LONGEST = 125
"""Characters of a search over three numbers; failed attempts are left out beyond it."""
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


def join(op: str, left: Term, right: Term, value: int) -> Term:
    """`left op right`, with parentheses where reading from left to right needs them."""
    binds = BINDS[op]
    left_text = f"({left.text})" if left.binds < binds else left.text
    right_text = f"({right.text})" if right.binds <= binds else right.text
    return Term(value, f"{left_text}{op}{right_text}", binds)


def made_of(first: Term, second: Term) -> Iterator[tuple[str, Term]]:
    """What two terms make, each with its line: at most a sum, a difference, a product and a quotient."""
    big, small = (first, second) if first.value >= second.value else (second, first)
    x, y = big.value, small.value
    results = [("+", x + y), ("-", x - y)]
    if y > 1:
        results.append(("*", x * y))
        if x % y == 0:
            results.append(("/", x // y))
    for op, value in results:
        if 1 <= value <= TOP:
            yield line(op, x, y), join(op, big, small, value)


def needs(target: int, rest: int) -> Iterator[tuple[str, int]]:
    """The values v that make the target together with `rest`, each with its line: v+r, r-v, v-r, v*r, v/r, r/v."""
    if target > rest:
        yield line("-", target, rest), target - rest
    elif rest > target:
        yield line("-", rest, target), rest - target
    if target + rest <= TOP:
        yield line("+", target, rest), target + rest
    if rest > 1 and target % rest == 0 and target > rest:
        yield line("/", target, rest), target // rest
    if rest > 1 and target * rest <= TOP:
        yield line("*", target, rest), target * rest
    if target > 1 and rest % target == 0 and rest > target:
        yield line("/", rest, target), rest // target


class Attempt(NamedTuple):
    """One pair taken, the lines written about it, and the expression if it succeeds."""

    lines: tuple[str, str]
    found: str | None


def attempt(first: Term, second: Term, rest: Term, target: int) -> Attempt:
    """Take a pair, list what it makes and what the target needs beside the rest, stop where they meet."""
    made = list(made_of(first, second))
    by_value = {term.value: term for _, term in reversed(made)}
    needed = []
    for shown, value in needs(target, rest.value):
        needed.append(shown)
        if value in by_value:
            _, whole = next(pair for pair in made_of(by_value[value], rest) if pair[1].value == target)
            return Attempt((" ".join(shown for shown, _ in made), " ".join(needed)), whole.text)
    return Attempt((" ".join(shown for shown, _ in made), " ".join(needed)), None)


def attempts(terms: list[Term], target: int) -> list[Attempt]:
    """The three ways to leave one of three terms over; equal ones once."""
    a, b, c = terms
    return list(dict.fromkeys(attempt(*taken, target) for taken in ((a, b, c), (a, c, b), (b, c, a))))


def short_search(terms: list[Term], target: int, yes: str) -> list[str]:
    """The lines for two numbers: what they make, up to the target."""
    lines = []
    for shown, term in made_of(*terms):
        lines.append(shown)
        if term.value == target:
            return [f"{' '.join(lines)} {yes}", f"{term.text}={target}"]
    raise AssertionError(f"{target} was drawn from {terms}")


def search(tried: list[Attempt], right: Attempt, yes: str, no: str, rng: random.Random) -> list[str]:
    """The lines for three numbers: up to two attempts that fail, then the right one.

    It comes first half of the time, and whenever every pair works.
    """
    failed = [each for each in tried if not each.found]
    rng.shuffle(failed)
    blocks = [f"{made}\n{needed} {no}" for made, needed in (each.lines for each in failed[: rng.choice(N_FAILED)])]
    blocks.append(f"{right.lines[0]}\n{right.lines[1]} {yes}")
    while len(blocks) > 1 and sum(map(len, blocks)) > LONGEST:
        del blocks[0]
    return blocks


def openings(terms: list[Term]) -> list[tuple[list[str], list[Term]]]:
    """Every way to come down to three terms, with the line that does it; no line if there are three already."""
    if len(terms) == 3:
        return [([], terms)]
    result = []
    for i in range(len(terms)):
        for j in range(i + 1, len(terms)):
            others = [term for k, term in enumerate(terms) if k not in (i, j)]
            result += [([shown], [made, *others]) for shown, made in made_of(terms[i], terms[j])]
    return result


def solutions(terms: list[Term], target: int, rng: random.Random) -> Iterator[tuple[list[str], list[Attempt], Attempt]]:
    """Every (opening lines, attempts after it, the one that succeeds) over three or four terms, in random order."""
    ways = openings(terms)
    rng.shuffle(ways)
    for lines, rest in ways:
        tried = attempts(rest, target)
        rng.shuffle(tried)
        yield from ((lines, tried, right) for right in tried if right.found)


def draw(rng: random.Random, difficulty: int) -> tuple[list[int], int, str]:
    """The numbers, a target made of them, and an expression that a thought finds."""
    n_numbers, top = LEVELS[difficulty]
    while True:
        numbers = [rng.randint(1, top) for _ in range(n_numbers)]
        given = [Term(n, str(n)) for n in numbers]
        terms = given
        while len(terms) > 1:
            first, second, *rest = rng.sample(terms, len(terms))
            ways = [made for _, made in made_of(first, second)]
            terms = [rng.choice(ways), *rest] if ways else []
        needs_search = terms and ("*" in terms[0].text or "/" in terms[0].text)
        if terms and terms[0].value > 1 and (needs_search or rng.random() < SUMS_KEPT):
            target = terms[0].value
            if n_numbers == 2:
                return numbers, target, next(made.text for _, made in made_of(*given) if made.value == target)
            return numbers, target, next(found for _, _, (_, found) in solutions(given, target, rng) if found)


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
        target, yes, no = problem.data["target"], YES[problem.lang], NO[problem.lang]
        terms = [Term(n, str(n)) for n in problem.data["numbers"]]
        if len(terms) == 2:
            return "\n".join(short_search(terms, target, yes))
        lines, tried, right = next(found for found in solutions(terms, target, rng) if found[2].found == problem.answer)
        return "\n".join((*lines, *search(tried, right, yes, no, rng), f"{right.found}={target}"))

    def score(self, problem: Problem, answer: str) -> bool:
        read, data = read_expression(answer), problem.data
        return read is not None and read[0] == data["target"] and sorted(read[1]) == sorted(data["numbers"])
