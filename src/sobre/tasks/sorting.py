"""Sort distinct numbers of 0-99. The thought writes all of them with two digits, goes through all tens and writes the
units that it finds, in order.

Levels (numbers; largest): 1 (3; 20), 2 (3-5; 50), 3, the test's (5-8; 99), 4 (8-10; 99), 5 (10-12; 99).
A line such as `4:17` stands for 41 and 47, `5:` for none; the answer then reads the lines. No ten is left out, so that
nothing has to be known of the numbers to come.
"""

import random

from sobre.tasks.base import Problem, places_right
from sobre.tasks.verify import read_integers

LEVELS = {1: (3, 3, 20), 2: (3, 5, 50), 3: (5, 8, 99), 4: (8, 10, 99), 5: (10, 12, 99)}
PROMPTS = {
    "en": ("Sort from smallest to largest: {}", "Put in increasing order: {}"),
    "fr": ("Trie du plus petit au plus grand : {}", "Range dans l'ordre croissant : {}"),
    "zh": ("从小到大排列：{}", "按从小到大的顺序写出：{}"),
}


class Sorting:
    name = "sorting"

    def problem(self, rng: random.Random, lang: str, difficulty: int) -> Problem:
        low, high, top = LEVELS[difficulty]
        numbers = rng.sample(range(top + 1), rng.randint(low, high))
        answer = " ".join(map(str, sorted(numbers)))
        prompt = rng.choice(PROMPTS[lang]).format(" ".join(map(str, numbers)))
        return Problem(self.name, lang, difficulty, prompt, answer, f"{self.name}:{answer}", {"numbers": numbers})

    def thought(self, problem: Problem, rng: random.Random) -> str:
        padded = " ".join(f"{number:02d}" for number in problem.data["numbers"])
        units: dict[int, str] = dict.fromkeys(range(10), "")
        for number in sorted(problem.data["numbers"]):
            units[number // 10] += str(number % 10)
        return "\n".join([padded, *(f"{tens}:{found}" for tens, found in units.items())])

    def score(self, problem: Problem, answer: str) -> bool:
        return read_integers(answer) == sorted(problem.data["numbers"])

    def credit(self, problem: Problem, answer: str) -> float:
        return places_right(sorted(problem.data["numbers"]), read_integers(answer))
