"""Solve a linear equation for x, then substitute the solution back.

Levels: 1 x+b=c, 2 a*x=c or x-b=c, 3, the test's, a*x+b=c, b+a*x=c or a*x-b=c (a 2-9, x 2-25, b 2-99),
4 a*(x+b)=c or a*(x-b)=c, 5 a*x+b=d*x+c. Solutions are natural numbers.
"""

import random

from sobre.tasks.base import YES, Problem
from sobre.tasks.steps import line
from sobre.tasks.verify import read_integer

FORMS = {
    1: ("x+b", "x-b"),
    2: ("ax", "x+b", "x-b"),
    3: ("ax+b", "b+ax", "ax-b"),
    4: ("a(x+b)", "a(x-b)"),
    5: ("ax+b=dx+c", "ax-b=dx+c"),
}
SMALL = {1: 20, 2: 50}
"""Largest b of the easy levels; 99 above them."""
PROMPTS = {
    "en": ("Solve {}", "Find x: {}"),
    "fr": ("Résous {}", "Trouve x : {}"),
    "zh": ("解方程{}", "求x：{}"),
}


def draw(rng: random.Random, difficulty: int) -> tuple[str, int, int, int, int]:
    """The form, a, b, d and the solution x, with every part of the equation a natural number."""
    form = rng.choice(FORMS[difficulty])
    a, b = rng.randint(2, 9), rng.randint(2, SMALL.get(difficulty, 99))
    x = rng.randint(2, 20 if difficulty in SMALL else 25)
    if form == "a(x+b)":
        b = rng.randint(2, 99 - x)
    elif form in ("a(x-b)", "x-b"):
        b = rng.randint(1, x - 1)
    elif form == "ax-b":
        b = rng.randint(2, min(99, a * x - 1))
    d = rng.randint(1, a - 1)
    if form == "ax-b=dx+c":
        b = rng.randint(1, (a - d) * x - 1)
    elif form == "ax+b=dx+c":
        b = rng.randint(1, 99)
    return form, a, b, d, x


def times(factor: int) -> str:
    """How a multiple of x is written: x, 2x, 3x."""
    return "x" if factor == 1 else f"{factor}x"


def work(form: str, a: int, b: int, d: int, x: int) -> tuple[str, list[str], list[str]]:
    """The equation, the lines that solve it, and the lines that put x back in."""
    ax = a * x
    if form == "ax":
        return f"{a}x={ax}", [f"x={line('/', ax, a)}"], [line("*", a, x)]
    if form in ("x+b", "x-b"):
        sign, back = ("+", "-") if form == "x+b" else ("-", "+")
        c = x + b if sign == "+" else x - b
        return f"x{sign}{b}={c}", [f"x={line(back, c, b)}"], [line(sign, x, b)]
    if form in ("a(x+b)", "a(x-b)"):
        sign, back = ("+", "-") if form == "a(x+b)" else ("-", "+")
        inner = x + b if sign == "+" else x - b
        solve = [f"x{sign}{b}={line('/', a * inner, a)}", f"x={line(back, inner, b)}"]
        return f"{a}(x{sign}{b})={a * inner}", solve, [line(sign, x, b), line("*", a, inner)]
    sign, back = ("-", "+") if form in ("ax-b", "ax-b=dx+c") else ("+", "-")
    left = ax - b if sign == "-" else ax + b
    check = [line("*", a, x), line(sign, ax, b)]
    divide = f"x={line('/', ax, a)}"
    if form in ("ax+b", "b+ax", "ax-b"):
        shown = f"{b}+{a}x={left}" if form == "b+ax" else f"{a}x{sign}{b}={left}"
        return shown, [f"{a}x={line(back, left, b)}", divide], check
    c = left - d * x
    solve = [f"{a}x-{times(d)}={times(a - d)}", f"{times(a - d)}={line(back, c, b)}"]
    if a - d > 1:
        solve.append(f"x={line('/', (a - d) * x, a - d)}")
    check += [line("*", d, x)] * (d > 1) + [line("+", d * x, c)]
    return f"{a}x{sign}{b}={times(d)}+{c}", solve, check


class Equation:
    name = "equation"

    def problem(self, rng: random.Random, lang: str, difficulty: int) -> Problem:
        form, a, b, d, x = draw(rng, difficulty)
        shown, solve, check = work(form, a, b, d, x)
        key = f"{a}x+{b}={a * x + b}" if form == "b+ax" else shown
        prompt = rng.choice(PROMPTS[lang]).format(shown)
        data = {"equation": shown, "solve": solve, "check": check}
        return Problem(self.name, lang, difficulty, prompt, str(x), f"{self.name}:{key}", data)

    def thought(self, problem: Problem, rng: random.Random) -> str:
        lines = [*problem.data["solve"], *problem.data["check"]]
        return "\n".join(lines) + f" {YES[problem.lang]}"

    def score(self, problem: Problem, answer: str) -> bool:
        return read_integer(answer) == int(problem.answer)
