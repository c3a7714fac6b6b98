"""Dates: which day is so many days later or earlier, and how many days lie between two. The thought walks the months.

    2024-01-25 and 45 days: 25+45=65+5=70     days from the beginning of January
    2024-01: 70-31=40-1=39                    January has 31
    2024-02: 39-29=19-9=10                    a leap year

Levels (days): 1 later within the month, 2 later (up to 30), 3, the test's, later or earlier (up to 60), 4 the same (up
to 150), 5 between two dates (up to 250). The answer is a date like the one that is asked about, or a number of days.
"""

import random
import re
from calendar import monthrange
from datetime import date, timedelta

from sobre.tasks.base import Problem
from sobre.tasks.steps import line
from sobre.tasks.verify import read_integer

LATER = {
    "en": ("Which date is {n} days after {start}?", "Today is {start}. Which date is it in {n} days?"),
    "fr": ("Quelle date vient {n} jours après {start} ?", "Nous sommes le {start}. Quelle date dans {n} jours ?"),
    "zh": ("{start}之后第{n}天是哪一天？", "今天是{start}，再过{n}天是哪一天？"),
}
EARLIER = {
    "en": ("Which date is {n} days before {start}?", "Today is {start}. Which date was it {n} days ago?"),
    "fr": ("Quelle date précède {start} de {n} jours ?", "Nous sommes le {start}. Quelle date il y a {n} jours ?"),
    "zh": ("{start}之前第{n}天是哪一天？", "今天是{start}，{n}天以前是哪一天？"),
}
BETWEEN = {
    "en": ("How many days are there from {start} to {end}?", "Days from {start} to {end}?"),
    "fr": ("Combien de jours y a-t-il de {start} à {end} ?", "Nombre de jours de {start} à {end} ?"),
    "zh": ("从{start}到{end}有多少天？", "{start}到{end}相差几天？"),
}
LONGEST = {2: 30, 3: 60, 4: 150, 5: 250}
"""Days; the first level stays within its month."""
FIRST, LAST = date(1990, 1, 1), date(2039, 12, 31)
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def month_of(day: date) -> tuple[str, int]:
    """How its month is written, and the days that it has."""
    return f"{day:%Y-%m}", monthrange(day.year, day.month)[1]


def after_month(day: date) -> date:
    """The first day of the next month."""
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)


def walk_later(start: date, n: int) -> list[str]:
    """Count from the beginning of the month, and take month after month away."""
    count, month = start.day + n, start.replace(day=1)
    lines = [line("+", start.day, n)]
    while count > month_of(month)[1]:
        name, days = month_of(month)
        lines.append(f"{name}: {line('-', count, days)}")
        count, month = count - days, after_month(month)
    return lines


def walk_earlier(start: date, n: int) -> list[str]:
    """Go back to the end of the month before, and on by whole months; what is left counts from a month's end."""
    if n < start.day:
        return [line("-", start.day, n)]
    left, month = n - start.day, start.replace(day=1) - timedelta(days=1)
    lines = [line("-", n, start.day)]
    while left >= month_of(month)[1]:
        name, days = month_of(month)
        lines.append(f"{name}: {line('-', left, days)}")
        left, month = left - days, month.replace(day=1) - timedelta(days=1)
    name, days = month_of(month)
    return [*lines, f"{name}: {line('-', days, left)}"]


def walk_between(start: date, end: date) -> list[str]:
    """The rest of the first month, whole months, and the days of the last."""
    if (start.year, start.month) == (end.year, end.month):
        return [line("-", end.day, start.day)]
    name, days = month_of(start)
    count, month = days - start.day, after_month(start)
    lines = [f"{name}: {line('-', days, start.day)}"]
    while (month.year, month.month) != (end.year, end.month):
        name, days = month_of(month)
        lines.append(f"{name}: {line('+', count, days)}")
        count, month = count + days, after_month(month)
    return [*lines, line("+", count, end.day)]


class Dates:
    name = "dates"

    def problem(self, rng: random.Random, lang: str, difficulty: int) -> Problem:
        start = FIRST + timedelta(days=rng.randrange((LAST - FIRST).days))
        if difficulty == 1:
            while start.day == month_of(start)[1]:
                start = FIRST + timedelta(days=rng.randrange((LAST - FIRST).days))
            n = rng.randint(1, month_of(start)[1] - start.day)
        else:
            n = rng.randint(2 if difficulty < 5 else 31, LONGEST[difficulty])
        kind = "between" if difficulty == 5 else rng.choice(("later", "earlier")) if difficulty > 2 else "later"
        end = start - timedelta(days=n) if kind == "earlier" else start + timedelta(days=n)
        answer = str(n) if kind == "between" else str(end)
        prompts = {"later": LATER, "earlier": EARLIER, "between": BETWEEN}[kind][lang]
        prompt = rng.choice(prompts).format(n=n, start=start, end=end)
        data = {"kind": kind, "start": start, "end": end, "n": n}
        return Problem(self.name, lang, difficulty, prompt, answer, f"{self.name}:{kind}:{start}:{n}", data)

    def thought(self, problem: Problem, rng: random.Random) -> str:
        kind, start, end, n = (problem.data[key] for key in ("kind", "start", "end", "n"))
        if kind == "between":
            return "\n".join(walk_between(start, end))
        return "\n".join(walk_later(start, n) if kind == "later" else walk_earlier(start, n))

    def score(self, problem: Problem, answer: str) -> bool:
        if problem.data["kind"] == "between":
            return read_integer(answer) == problem.data["n"]
        text = answer.strip(" \n")
        return DATE.fullmatch(text) is not None and text == problem.answer
