"""Sums of one-digit numbers: the first arithmetic there is. The thought adds one number a line.

Levels: 2, 3, 6, 8 and 10 numbers of 0-9; 3 is the test's.
"""

import random
from itertools import accumulate

from sobre.tasks.base import Problem
from sobre.tasks.steps import line
from sobre.tasks.verify import read_integer

LEVELS = {1: 2, 2: 3, 3: 6, 4: 8, 5: 10}
PROMPTS = {
    "en": ("Add {}", "What is {}?"),
    "fr": ("Additionne {}", "Combien font {} ?"),
    "zh": ("相加：{}", "{}等于多少？"),
}


class Sums:
    name = "sums"

    def problem(self, rng: random.Random, lang: str, difficulty: int) -> Problem:
        numbers = [rng.randint(0, 9) for _ in range(LEVELS[difficulty])]
        prompt = rng.choice(PROMPTS[lang]).format("+".join(map(str, numbers)))
        key = f"{self.name}:{' '.join(map(str, sorted(numbers)))}"
        return Problem(self.name, lang, difficulty, prompt, str(sum(numbers)), key, {"numbers": numbers})

    def thought(self, problem: Problem, rng: random.Random) -> str:
        first, *others = problem.data["numbers"]
        before = accumulate(others[:-1], initial=first)
        return "\n".join(line("+", left, right) for left, right in zip(before, others, strict=True))

    def score(self, problem: Problem, answer: str) -> bool:
        return read_integer(answer) == int(problem.answer)
