"""Put steps into one formula: `20-13=7, 7*4=28` is `(20-13)*4`. The thought:

    28: 20 13 4          what they arrive at and the numbers, largest first
    20-13=7
    7*4=28
    (20-13)*4=28

Any formula of the same numbers with the same value is right. Each step takes the result of the one before it and one
number more; as in countdown, the larger stands first, results lie in 1-99 and nothing is multiplied by one.
Levels (steps; numbers): 1 (1; 1-12), 2 (2; 1-25), 3, the test's (2-3; 1-50), 4 (3-4; 1-99), 5 (5; 1-99).
"""

import random

from sobre.tasks.base import Problem
from sobre.tasks.countdown import Term, made_of
from sobre.tasks.verify import is_made_of

LEVELS = {1: (1, 1, 12), 2: (2, 2, 25), 3: (2, 3, 50), 4: (3, 4, 99), 5: (5, 5, 99)}
PROMPTS = {
    "en": ("Put into one formula: {}", "Write as one formula: {}"),
    "fr": ("Réunis en une formule : {}", "Écris en une seule formule : {}"),
    "zh": ("合成一个算式：{}", "写成一个算式：{}"),
}


class Formula:
    name = "formula"

    def problem(self, rng: random.Random, lang: str, difficulty: int) -> Problem:
        low, high, top = LEVELS[difficulty]
        numbers = [rng.randint(1, top) for _ in range(rng.randint(low, high) + 1)]
        term, steps = Term(numbers[0], str(numbers[0])), []
        for number in numbers[1:]:
            made = rng.choice(list(made_of(term, Term(number, str(number)))))
            term = made.term
            steps.append(made.line)
        shown = ", ".join(steps)
        prompt = rng.choice(PROMPTS[lang]).format(shown)
        data = {"steps": steps, "numbers": numbers, "target": term.value}
        return Problem(self.name, lang, difficulty, prompt, term.text, f"{self.name}:{shown}", data)

    def thought(self, problem: Problem, rng: random.Random) -> str:
        target, numbers = problem.data["target"], sorted(problem.data["numbers"], reverse=True)
        header = f"{target}: {' '.join(map(str, numbers))}"
        return "\n".join((header, *problem.data["steps"], f"{problem.answer}={target}"))

    def score(self, problem: Problem, answer: str) -> bool:
        return is_made_of(answer, problem.data["target"], problem.data["numbers"])
