"""The layout of a response, and the reward for a completion. The one home of the tags.

The prompt of a reasoning model ends with `<think>` and a newline, so a completion starts inside the thought:

    {thought}
    </think>
    <answer>{answer}</answer>

Accuracy asks for a finished completion with exactly one thought and one answer after it; the format reward asks for
exactly the layout above. Both read the text alone (without the end-of-sequence token).
"""

import re
from dataclasses import dataclass

from sobre.errors import JudgeError, SobreError
from sobre.tasks.base import Creditor, Problem
from sobre.tasks.judges import judge_of
from sobre.tasks.language import consistency
from sobre.tasks.registry import task, worked_answer

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
ANSWER_OPEN = "<answer>"
ANSWER_CLOSE = "</answer>"

_TAG = re.compile(r"</?(?:think|answer)>")
_ANSWER = re.compile(r"<answer>([^<>]*)</answer>")
_TAIL = re.compile(r"<answer>[^<>\n]+</answer>")


@dataclass(frozen=True)
class Reward:
    """What a completion earns."""

    accuracy: float
    """1 if the extracted answer is right, else 0."""
    format: float
    """1 if the completion has exactly our layout, else 0."""
    total: float
    """accuracy + format_weight * format + language_weight * language + credit_weight * credit (of a wrong answer)."""
    language: float = 1.0
    """Share of its words that are in the language of the question (`tasks/language.py`)."""
    credit: float = 0.0
    """How near a wrong answer is, where the task can say."""
    fault: str = ""
    """Why there is no verdict: the judge failed. The other fields then mean nothing."""


def completion(thought: str, answer: str) -> str:
    """What a model writes after the generation prompt."""
    return f"{thought}\n{THINK_CLOSE}\n{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"


def response(problem: Problem, thought: str) -> str:
    """The assistant's whole message: a thought of the task, and the answer at which it arrives."""
    return f"{THINK_OPEN}\n{completion(thought, worked_answer(problem))}"


def plain_response(problem: Problem) -> str:
    """The assistant's whole message without a thought: the reference answer alone."""
    return f"{ANSWER_OPEN}{problem.answer}{ANSWER_CLOSE}"


def extract_answer(text: str) -> str | None:
    """The answer of a completion; None without exactly one end of thought, or with answers that differ or nest.

    What stands inside the thought is never an answer.
    """
    if THINK_CLOSE not in text or THINK_OPEN in text:
        return None
    tail = text.partition(THINK_CLOSE)[2]
    answers = _ANSWER.findall(tail)
    whole = len(_TAG.findall(tail)) == 2 * len(answers)
    return answers[-1] if whole and len(set(answers)) == 1 else None


def answer_in(problem: Problem, text: str) -> str | None:
    """The answer of a completion to this problem, as its judge reads it; None when there is none."""
    judge = judge_of(problem)
    return extract_answer(text) if judge is None else judge.extract(problem, text)


def without_tags(text: str) -> str:
    """The words of a response, for those who count words."""
    return _TAG.sub(" ", text)


def format_ok(text: str) -> bool:
    """Whether a completion is laid out exactly as `completion` does it, with a thought that is not empty."""
    thought, _, tail = text.partition(f"\n{THINK_CLOSE}\n")
    return bool(thought.strip()) and not _TAG.search(thought) and bool(_TAIL.fullmatch(tail))


def thought_ok(text: str) -> bool:
    """Whether a response has one thought that is not empty and ended, and something after it."""
    thought, _, rest = text.removeprefix(THINK_OPEN).partition(THINK_CLOSE)
    return bool(thought.strip() and rest.strip()) and not re.search("</?think>", thought + rest)


def question(problem: Problem) -> str:
    """What a chat model is asked: the problem, and for problems from files what its answer should look like."""
    judge = judge_of(problem)
    return problem.prompt if judge is None else judge.prompt(problem)


def reward(
    problem: Problem,
    text: str,
    finished: bool,
    *,
    format_weight: float = 0.1,
    language_weight: float = 0.0,
    credit_weight: float = 0.0,
) -> Reward:
    """Score a completion (the text after the generation prompt). One that was cut off earns nothing.

    total = accuracy + format_weight * format + language_weight * language + credit_weight * credit, where credit counts
    for wrong answers alone. Problems from files are judged in any common layout (`tasks/judges.py`): the format reward
    then asks for one thought that ended, and something after it. Raises JudgeError when the judge gives no verdict.
    """
    if not finished:
        return Reward(0.0, 0.0, 0.0, language=0.0)
    judge = judge_of(problem)
    answer = answer_in(problem, text)
    right = answer is not None and is_right(problem, answer)
    formed = format_ok(text) if judge is None else thought_ok(text)
    language = consistency(without_tags(text), problem.lang)
    credit = 0.0 if right or answer is None or not credit_weight else nearness(problem, answer)
    total = right + format_weight * formed + language_weight * language + credit_weight * credit
    return Reward(float(right), float(formed), total, language, credit)


def is_right(problem: Problem, answer: str) -> bool:
    """The verdict of the problem's judge or task. Raises JudgeError where it raises, or says neither True nor False."""
    judge = judge_of(problem)
    try:
        found = task(problem.task).score(problem, answer) if judge is None else judge.right(problem, answer)
    except JudgeError as error:
        raise JudgeError(f"{_judged(problem, answer)}: {error}") from error
    except SobreError:
        raise  # no sandbox, no reader of LaTeX: not this answer's fault
    except Exception as error:
        raise JudgeError(f"{_judged(problem, answer)}: {type(error).__name__}: {error}") from error
    if not isinstance(found, bool):
        raise JudgeError(f"{_judged(problem, answer)}: it said {found!r}, which is neither True nor False")
    return found


def nearness(problem: Problem, answer: str) -> float:
    """How near a wrong answer is, from 0 to 1; 0 where its task cannot say."""
    chosen = None if judge_of(problem) else task(problem.task)
    if not isinstance(chosen, Creditor):
        return 0.0
    try:
        found = chosen.credit(problem, answer)
    except Exception as error:
        raise JudgeError(f"{_judged(problem, answer)}: {type(error).__name__}: {error}") from error
    if not 0 <= found <= 1:  # a NaN too
        raise JudgeError(f"{_judged(problem, answer)}: its credit is {found!r}, which is not in 0..1")
    return float(found)


def _judged(problem: Problem, answer: str) -> str:
    return f"the judge of {problem.task} failed on {problem.key}, answer {answer[:80]!r}"
