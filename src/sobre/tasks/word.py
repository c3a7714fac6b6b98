"""Word problems of several steps, worded natively in each language. The thought writes the operations, one a line.

Half are stories (someone has, buys, gives, gets packs of things: any number of steps), half are the templates of
`word_texts.py`. Levels (steps; largest number): 1 (1; 20), 2 (1-2; 50), 3, the test's (2-3; 99), 4 (3-4; 99),
5 (4-5; 99). Every result is a natural number; a product has one factor of at most 9.
"""

import random
from functools import cache

from sobre.tasks.base import Problem
from sobre.tasks.steps import apply, is_easy, line
from sobre.tasks.verify import read_integer
from sobre.tasks.word_texts import EVENTS, NAMES, NOUNS, QUESTION, START, TEMPLATES, Template

LEVELS = {1: (1, 1, 20), 2: (1, 2, 50), 3: (2, 3, 99), 4: (3, 4, 99), 5: (4, 5, 99)}
COST = {"plus": 1, "minus": 1, "packs": 2}
"""Steps that an event takes."""


@cache
def story(events: tuple[str, ...], wording: tuple[int, ...]) -> Template:
    """The template in which these events happen to one person, in order."""
    ranges, steps, have = {"a": (10, 99)}, [], "a"
    for i, event in enumerate(events):
        amount = f"n{i}"
        ranges[amount] = (2, 9) if event == "packs" else (2, 60 if len(events) < 3 else 25)
        if event == "packs":
            ranges[f"m{i}"] = (2, 20)
            steps.append(("*", amount, f"m{i}"))
            amount = f"r{len(steps) - 1}"
        steps.append(("-" if event == "minus" else "+", have, amount))
        have = f"r{len(steps) - 1}"
    texts = {}
    for lang, start in START.items():
        happens = (EVENTS[event][lang][wording[i]] for i, event in enumerate(events))
        sentences = (text.replace("{n}", f"{{n{i}}}").replace("{m}", f"{{m{i}}}") for i, text in enumerate(happens))
        texts[lang] = ("" if lang == "zh" else " ").join((start, *sentences, QUESTION[lang]))
    return Template(f"story-{'-'.join(events)}", ranges, tuple(steps), texts)


def draw_template(rng: random.Random, low: int, high: int) -> Template:
    """A story or a written template with low..high steps."""
    fixed = [template for template in TEMPLATES if low <= len(template.steps) <= high]
    if fixed and rng.random() < 0.5:
        return rng.choice(fixed)
    left, events = rng.randint(low, high), []
    while left:
        event = rng.choice([name for name, cost in COST.items() if cost <= left])
        events.append(event)
        left -= COST[event]
    return story(tuple(events), tuple(rng.randrange(2) for _ in events))


def work(template: Template, numbers: dict[str, int]) -> tuple[list[str], int] | None:
    """The lines and the last result; None if a step is not easy or leaves nothing."""
    values, lines, result = dict(numbers), [], 0
    for i, (op, left, right) in enumerate(template.steps):
        x, y = values[left], int(right) if right.isdigit() else values[right]
        if not is_easy(op, x, y) or (result := apply(op, x, y)) < 1:
            return None
        values[f"r{i}"] = result
        lines.append(line(op, x, y))
    return lines, result


class Word:
    name = "word"

    def problem(self, rng: random.Random, lang: str, difficulty: int) -> Problem:
        low, high, top = LEVELS[difficulty]
        template, worked = draw_template(rng, low, high), None
        ranges = [(each, min(least, top // 2), min(most, top)) for each, (least, most) in template.ranges.items()]
        while worked is None:
            numbers = {each: rng.randint(least, most) for each, least, most in ranges}
            worked = work(template, numbers)
        (name, he), (friend, _) = rng.sample(NAMES[lang], 2)
        noun, unit = rng.choice(NOUNS[lang])
        words = {"name": name, "friend": friend, "he": he, "He": he.capitalize(), "noun": noun, "unit": unit}
        prompt = template.texts[lang].format(**numbers, **words)
        key = f"{self.name}:{template.name}:{' '.join(map(str, numbers.values()))}"
        return Problem(self.name, lang, difficulty, prompt, str(worked[1]), key, {"lines": worked[0]})

    def thought(self, problem: Problem, rng: random.Random) -> str:
        return "\n".join(problem.data["lines"])

    def score(self, problem: Problem, answer: str) -> bool:
        return read_integer(answer) == int(problem.answer)
