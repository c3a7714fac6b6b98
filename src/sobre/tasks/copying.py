"""Write numbers again, in the same order (copy) or from the last to the first (reverse): the ladder's lowest rungs.

Nothing is computed, so that even an untrained model of a few hundred thousand parameters is right now and then, and
reinforcement learning has something to begin with. The thought takes the numbers one a line, in the order of the
answer. Levels (numbers; largest): 1 (2; 9), 2 (3; 20), 3, the test's (5; 99), 4 (7; 99), 5 (9; 99).
"""

import random
from collections.abc import Mapping

from sobre.tasks.base import Problem, places_right
from sobre.tasks.verify import read_integers

LEVELS = {1: (2, 9), 2: (3, 20), 3: (5, 99), 4: (7, 99), 5: (9, 99)}
COPY_PROMPTS = {
    "en": ("Copy: {}", "Write again: {}"),
    "fr": ("Recopie : {}", "Écris encore : {}"),
    "zh": ("抄写：{}", "再写一遍：{}"),
}
REVERSE_PROMPTS = {
    "en": ("Reverse: {}", "Write from last to first: {}"),
    "fr": ("Écris à l'envers : {}", "Écris du dernier au premier : {}"),
    "zh": ("倒着写：{}", "从后往前写：{}"),
}


class Rewriting:
    """Copy, or reverse."""

    def __init__(self, name: str, prompts: Mapping[str, tuple[str, ...]], *, backwards: bool) -> None:
        self.name = name
        self._prompts, self._backwards = prompts, backwards

    def problem(self, rng: random.Random, lang: str, difficulty: int) -> Problem:
        count, top = LEVELS[difficulty]
        numbers = [rng.randint(0, top) for _ in range(count)]
        shown = " ".join(map(str, numbers))
        wanted = numbers[::-1] if self._backwards else numbers
        prompt = rng.choice(self._prompts[lang]).format(shown)
        answer = " ".join(map(str, wanted))
        return Problem(self.name, lang, difficulty, prompt, answer, f"{self.name}:{shown}", {"wanted": wanted})

    def thought(self, problem: Problem, rng: random.Random) -> str:
        return "\n".join(map(str, problem.data["wanted"]))

    def score(self, problem: Problem, answer: str) -> bool:
        return read_integers(answer) == problem.data["wanted"]

    def credit(self, problem: Problem, answer: str) -> float:
        return places_right(problem.data["wanted"], read_integers(answer))
