"""The next number of a sequence. The thought takes each term from the next, so that their order is read off the
question and the sign off two neighbours; it writes the differences in a row, finds the one that follows (of growing
ones by how much the second is above the first), and takes that step.

Levels: 1 equal steps of at most 9 (four terms), 2 of at most 15, 3, the test's, also two alternating steps and
growing steps (five terms), 4 also sums of the two terms before, 5 the same with larger steps (six terms).
Five terms tell the kinds apart: differences d d d d, a b a b and d d+k d+2k d+3k never coincide.
"""

import random
from itertools import pairwise

from sobre.tasks.base import Problem
from sobre.tasks.steps import line
from sobre.tasks.verify import read_integer

KINDS = {
    1: ("equal",),
    2: ("equal",),
    3: ("equal", "alternating", "growing", "alternating", "growing"),
    4: ("alternating", "growing", "sums"),
    5: ("alternating", "growing", "sums"),
}
START = {1: 20, 2: 60, 3: 90, 4: 90, 5: 200}
STEP = {1: 9, 2: 15, 3: 20, 4: 30, 5: 60}
TERMS = {1: 4, 2: 4, 3: 5, 4: 5, 5: 6}
PROMPTS = {
    "en": ("What comes next? {}", "Next number: {}"),
    "fr": ("Quel nombre vient après ? {}", "Nombre suivant : {}"),
    "zh": ("下一个数是多少？{}", "找规律填数：{}"),
}


def signed(rng: random.Random, largest: int) -> int:
    """A step from -largest to largest, never zero."""
    return rng.randint(1, largest) * rng.choice((1, -1))


def differences(rng: random.Random, kind: str, largest: int, n: int) -> list[int]:
    """The n differences of a sequence with equal, alternating or growing steps."""
    first = signed(rng, largest)
    if kind == "equal":
        return [first] * n
    if kind == "alternating":
        second = signed(rng, largest)
        while second == first:
            second = signed(rng, largest)
        return [second if i % 2 else first for i in range(n)]
    growth = signed(rng, max(2, largest // 4))
    return [first + i * growth for i in range(n)]


def draw(rng: random.Random, difficulty: int) -> tuple[str, list[int]]:
    """The kind, and the shown terms with, last, the one asked for; all natural numbers."""
    kind, n_terms = rng.choice(KINDS[difficulty]), TERMS[difficulty]
    while True:
        terms = [rng.randint(1, START[difficulty])]
        if kind == "sums":
            terms = [rng.randint(1, STEP[difficulty] // 2), rng.randint(1, STEP[difficulty] // 2)]
            while len(terms) <= n_terms:
                terms.append(terms[-2] + terms[-1])
        else:
            for difference in differences(rng, kind, STEP[difficulty], n_terms):
                terms.append(terms[-1] + difference)
        if min(terms) >= 0:
            return kind, terms


def distance(a: int, b: int) -> str:
    """The line that works out how far two numbers are apart: 14-9=5, or 3+4=7 for 3 and -4."""
    low, high = sorted((abs(a), abs(b)))
    return line("-", high, low) if (a < 0) == (b < 0) else line("+", high, low)


class Sequence:
    name = "sequence"

    def problem(self, rng: random.Random, lang: str, difficulty: int) -> Problem:
        kind, terms = draw(rng, difficulty)
        *shown, following = terms
        text = " ".join(map(str, shown))
        prompt = rng.choice(PROMPTS[lang]).format(text)
        data = {"kind": kind, "terms": terms}
        return Problem(self.name, lang, difficulty, prompt, str(following), f"{self.name}:{text}", data)

    def thought(self, problem: Problem, rng: random.Random) -> str:
        *shown, _ = terms = problem.data["terms"]
        lines = [line("-", after, before) for before, after in pairwise(shown)]
        *steps, last = [after - before for before, after in pairwise(terms)]
        row = " ".join(f"{step:+d}" for step in steps)
        if problem.data["kind"] == "sums":
            return "\n".join([*lines, row, line("+", *shown[-2:])])
        if problem.data["kind"] == "growing":
            growth = steps[1] - steps[0]
            lines += [
                row,
                f"{'-' if growth < 0 else '+'} {distance(*steps[:2])}",
                f"{steps[-1]:+d}{growth:+d}={last:+d}",
            ]
        else:
            lines.append(f"{row} {last:+d}")
        return "\n".join([*lines, line("+" if last >= 0 else "-", shown[-1], abs(last))])

    def score(self, problem: Problem, answer: str) -> bool:
        return read_integer(answer) == int(problem.answer)
