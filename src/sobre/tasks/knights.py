"""Knights and knaves: knights say what is true, knaves what is false; who is a knight? One solution, found by search.

The thought assumes people one after the other (`A+` a knight, `A-` a knave) and names the first whose words then
contradict what they are; where nobody's do, the next person is assumed, and where both kinds fail it goes back:

    A+ B+ no A        if A and B are knights, A's own words are not true
    A+ B- no B
    A- B+ yes

Levels (people): 1 (2), 2 (3, with statements of one part), 3, the test's (3), 4 (4), 5 (5). The answer lists the
knights, of whom there is at least one. Statements: someone is a knight, or a knave; one of these and another; one or
another; two people are of the same kind, or not.
"""

import random
import re
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from sobre.tasks.base import NO, YES, Problem

PEOPLE = {1: 2, 2: 3, 3: 3, 4: 4, 5: 5}
NAMES = "ABCDE"
SHORT_KINDS = ("is", "same", "differ")
KINDS = (*SHORT_KINDS, "is", "and", "or")
RULE = {
    "en": "Knights always tell the truth, knaves always lie.",
    "fr": "Les chevaliers disent toujours vrai, les coquins mentent toujours.",
    "zh": "骑士总说真话，无赖总说假话。",
}
ASK = {
    "en": ("Who is a knight?", "Name the knights."),
    "fr": ("Qui est chevalier ?", "Nomme les chevaliers."),
    "zh": ("谁是骑士？", "写出所有骑士。"),
}
SAYS = {"en": '{0}: "{1}."', "fr": "{0} : « {1}. »", "zh": "{0}：“{1}。”"}
IS = {
    "en": ("{} is a knave", "{} is a knight"),
    "fr": ("{} est un coquin", "{} est un chevalier"),
    "zh": ("{}是无赖", "{}是骑士"),
}
JOIN = {
    "en": {"and": "{} and {}", "or": "{} or {}"},
    "fr": {"and": "{} et {}", "or": "{} ou {}"},
    "zh": {"and": "{}，并且{}", "or": "{}，或者{}"},
}
ALIKE = {
    "en": {"same": "{} and {} are of the same kind", "differ": "{} and {} are of different kinds"},
    "fr": {"same": "{} et {} sont du même genre", "differ": "{} et {} sont de genres différents"},
    "zh": {"same": "{}和{}是同类", "differ": "{}和{}不是同类"},
}
ANSWER = re.compile(r"[A-E](?:(?:, ?| )[A-E]){0,4}")


class Claim(NamedTuple):
    """What one person says about one or two people (by number), each called a knight (True) or a knave."""

    kind: str
    who: tuple[int, ...]
    knights: tuple[bool, ...] = ()

    def holds(self, world: Sequence[bool]) -> bool:
        """Whether it is true where `world` says who is a knight; only the people that it names need to be there."""
        if self.kind in ("same", "differ"):
            return (world[self.who[0]] == world[self.who[1]]) == (self.kind == "same")
        parts = [world[who] == knight for who, knight in zip(self.who, self.knights, strict=True)]
        return any(parts) if self.kind == "or" else all(parts)

    def text(self, lang: str) -> str:
        names = [NAMES[who] for who in self.who]
        if self.kind in ALIKE[lang]:
            return ALIKE[lang][self.kind].format(*names)
        parts = [IS[lang][knight].format(name) for name, knight in zip(names, self.knights, strict=True)]
        return parts[0] if self.kind == "is" else JOIN[lang][self.kind].format(*parts)

    def key(self) -> str:
        return f"{self.kind}{''.join(NAMES[who] for who in self.who)}{''.join('-+'[k] for k in self.knights)}"


def draw_claim(rng: random.Random, speaker: int, n: int, kinds: Sequence[str]) -> Claim:
    """What `speaker` says; never just "I am a knight" or "I am a knave", which tells nothing or cannot be said."""
    kind = rng.choice(kinds)
    others = [who for who in range(n) if who != speaker]
    if kind == "is":
        return Claim(kind, (rng.choice(others),), (rng.random() < 0.5,))
    pair = rng.sample(range(n), 2)
    who = (min(pair), max(pair))
    return (
        Claim(kind, who) if kind in ("same", "differ") else Claim(kind, who, (rng.random() < 0.5, rng.random() < 0.5))
    )


def solutions(claims: Sequence[Claim]) -> list[tuple[bool, ...]]:
    """Every world in which knights alone tell the truth."""
    worlds = product((True, False), repeat=len(claims))
    return [w for w in worlds if all(claim.holds(w) == knight for claim, knight in zip(claims, w, strict=True))]


def contradicted(claims: Sequence[Claim], world: Sequence[bool]) -> int | None:
    """The first of the assumed people whose words do not fit, of those that speak of assumed people only."""
    for speaker, knight in enumerate(world):
        claim = claims[speaker]
        if max(claim.who) < len(world) and claim.holds(world) != knight:
            return speaker
    return None


def search(claims: Sequence[Claim], world: tuple[bool, ...] = ()) -> Iterator[tuple[tuple[bool, ...], int | None]]:
    """The worlds that were tried, whole or contradicted, in order, up to the solution."""
    for knight in (True, False):
        tried = (*world, knight)
        wrong = contradicted(claims, tried)
        if wrong is not None or len(tried) == len(claims):
            yield tried, wrong
        else:
            yield from search(claims, tried)


class Knights:
    name = "knights"

    def problem(self, rng: random.Random, lang: str, difficulty: int) -> Problem:
        n, kinds = PEOPLE[difficulty], SHORT_KINDS if difficulty == 2 else KINDS
        while True:
            claims = [draw_claim(rng, speaker, n, kinds) for speaker in range(n)]
            found = solutions(claims)
            if len(found) == 1 and any(found[0]):
                break
        said = (SAYS[lang].format(NAMES[speaker], claim.text(lang)) for speaker, claim in enumerate(claims))
        space = "" if lang == "zh" else " "
        prompt = space.join((RULE[lang], *said, rng.choice(ASK[lang])))
        answer = " ".join(name for name, knight in zip(NAMES, found[0], strict=False) if knight)
        key = f"{self.name}:{' '.join(claim.key() for claim in claims)}"
        return Problem(self.name, lang, difficulty, prompt, answer, key, {"claims": claims})

    def thought(self, problem: Problem, rng: random.Random) -> str:
        lines: list[str] = []
        for world, wrong in search(problem.data["claims"]):
            assumed = " ".join(f"{name}{'+' if knight else '-'}" for name, knight in zip(NAMES, world, strict=False))
            if wrong is None:
                return "\n".join((*lines, f"{assumed} {YES[problem.lang]}"))
            lines.append(f"{assumed} {NO[problem.lang]} {NAMES[wrong]}")
        raise AssertionError(f"{problem.key} was drawn with a solution")

    def score(self, problem: Problem, answer: str) -> bool:
        text = answer.strip(" \n")
        if not ANSWER.fullmatch(text):
            return False
        named = [char for char in text if char in NAMES]
        return sorted(named) == problem.answer.split()
