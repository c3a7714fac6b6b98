"""How problems from files are asked and judged: mathematics, multiple choice, code. No task generates these.

A judge finds the answer in a free response and decides whether it is right. Any model may have written it, so more than
our own layout is read: the thought ends at </think> if there is one, and the answer stands in <answer>...</answer>, in
the last \\boxed{...}, after `####`, or, for code, in the last fenced block. Nothing in the thought is an answer.
"""

import re
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Protocol

from sobre.errors import ConfigError
from sobre.tasks.base import Problem
from sobre.tasks.equality import compared, equal
from sobre.tasks.sandbox import Limits, mechanism, run_code

LETTERS = "ABCDEFGHIJ"
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.S)
_HASHES = re.compile(r"####\s*(.+)")
_SAID = re.compile(r"answer\s*(?:is|:)\s*\**\s*\(?([A-J])\b", re.I)
_FENCE = re.compile(r"```(?:[Pp]ython|py)?[ \t]*\n(.*?)```", re.S)
_TOP_LEVEL = re.compile(r"\n(?=[^\s#@)\]}])")


class Judge(Protocol):
    """What evaluation and rewards need to know of a kind of problem."""

    kind: str

    def prompt(self, problem: Problem) -> str:
        """What a chat model is asked."""

    def extract(self, problem: Problem, text: str) -> str | None:
        """The answer in a response; None when there is none."""

    def right(self, problem: Problem, answer: str) -> bool:
        """Whether it is right."""


def after_thought(text: str) -> str | None:
    """What follows the thought; the whole text when there is none, None when a thought did not end."""
    _, closed, rest = text.rpartition("</think>")
    if closed:
        return rest
    return None if "<think>" in text else text


def boxed(text: str) -> str | None:
    """The content of the last \\boxed{...}, with its braces matched."""
    start = text.rfind("\\boxed{")
    depth, begin = 0, start + len("\\boxed{")
    for i in range(begin - 1, len(text)) if start >= 0 else ():
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[begin:i].strip()
    return None


def marked(rest: str) -> str | None:
    """The answer as any of the marks gives it: tags, then a box, then `####`."""
    if tagged := _TAGGED.findall(rest):
        inner = boxed(tagged[-1])
        return inner if inner is not None else str(tagged[-1]).strip()
    if (found := boxed(rest)) is not None:
        return found
    hashes = _HASHES.findall(rest)
    return hashes[-1].strip() if hashes else None


class MathJudge:
    kind = "math"

    def prompt(self, problem: Problem) -> str:
        return f"{problem.prompt}\n\nReason step by step, and put the final answer within \\boxed{{}}."

    def extract(self, problem: Problem, text: str) -> str | None:
        rest = after_thought(text)
        return None if rest is None else marked(rest)

    def right(self, problem: Problem, answer: str) -> bool:
        return equal(problem.answer, answer)


class ChoiceJudge:
    kind = "choice"

    def prompt(self, problem: Problem) -> str:
        choices = "\n".join(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(problem.data["choices"]))
        return f"{problem.prompt}\n\n{choices}\n\nPut the letter of the right answer within \\boxed{{}}."

    def extract(self, problem: Problem, text: str) -> str | None:
        rest = after_thought(text)
        if rest is None:
            return None
        answer = marked(rest)
        if answer is None:
            said = _SAID.findall(rest)
            answer = said[-1].upper() if said else rest.strip()
        found = re.fullmatch(r"(?:\\text\{)?\(?([A-J])\)?\}?(?:[.:)].*)?", answer.strip(), re.S)
        return found[1] if found else None

    def right(self, problem: Problem, answer: str) -> bool:
        """Whether it says what the reference says: two choices of one text (MMLU has some) are right together."""
        choices = problem.data["choices"]
        at = LETTERS.index(answer)
        return at < len(choices) and bool(choices[at] == choices[LETTERS.index(problem.answer)])


class CodeJudge:
    kind = "code"
    limits = Limits(seconds=10)

    def prompt(self, problem: Problem) -> str:
        if problem.data["entry_point"]:
            asked = "Complete this Python function. Answer with the whole function in one fenced block."
            return f"{asked}\n\n```python\n{problem.prompt.rstrip()}\n```"
        tests = "\n".join(problem.data["shown"])
        return f"{problem.prompt}\n\nIt has to pass these tests:\n\n{tests}\n\nAnswer with Python in one fenced block."

    def extract(self, problem: Problem, text: str) -> str | None:
        rest = after_thought(text)
        if rest is None:
            return None
        blocks = _FENCE.findall(rest)
        name = problem.data["entry_point"]
        if blocks:
            whole = not name or re.search(rf"def\s+{re.escape(name)}\b", blocks[-1])
            head = problem.data["head"] if whole else problem.prompt
            return f"{head}\n{blocks[-1]}"
        if not name or not rest.strip():
            return None
        return problem.prompt + _TOP_LEVEL.split(rest, maxsplit=1)[0]  # a continuation: up to the end of the function

    def right(self, problem: Problem, answer: str) -> bool:
        """Whether the tests come to their end in the sandbox; raises SandboxError where there is none."""
        return run_code(f"{answer}\n{problem.data['test']}", self.limits).status == "done"


_ALL: tuple[Judge, ...] = (MathJudge(), ChoiceJudge(), CodeJudge())
JUDGES: dict[str, Judge] = {judge.kind: judge for judge in _ALL}


def judge_of(problem: Problem) -> Judge | None:
    """The judge of a problem from a file; None for the problems of generated tasks, which judge themselves."""
    return JUDGES.get(problem.data.get("judge", ""))


def same_answer(problem: Problem, one: str, other: str) -> bool:
    """Whether two answers to a problem say the same: by `equality` in mathematics (1/2 and 0.5), else to the letter."""
    one, other = one.strip(), other.strip()
    return one == other or (problem.data.get("judge") == MathJudge.kind and compared(one, other) is True)


def check_judges(problems: Iterable[Problem]) -> None:
    """Refuse before anything is spent what this machine cannot judge: SandboxError for code that no sandbox would hold,
    ConfigError where math-verify is missing, which reads every answer of a model that is no plain number."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.data.get("judge", ""), problem)
    if CodeJudge.kind in first:
        mechanism()
    if MathJudge.kind in first and find_spec("math_verify") is None:
        asked = first[MathJudge.kind]
        raise ConfigError(f"{asked.key} asks for mathematics, read by math-verify: pip install 'sobre[math]'")
