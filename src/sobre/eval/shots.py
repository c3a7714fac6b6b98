"""Few-shot mode: worked examples before each question, as turns of a chat or as plain text for a base model.

The examples of a generated task come from its training split. Those of a file are its last problems, which are then not
asked. In plain text a question stands after `Question:` and its answer after `Answer:`, with an empty line between two;
the reply ends where the model begins the next question.
"""

import random
from collections.abc import Sequence

from sobre.errors import ConfigError
from sobre.tasks.base import Problem
from sobre.tasks.format import ANSWER_CLOSE, ANSWER_OPEN, question, response
from sobre.tasks.judges import judge_of
from sobre.tasks.registry import task, worked_answer
from sobre.tasks.sampling import DEFAULT, Message, sample_problem

QUESTION, ANSWER = "Question:", "Answer:"
BETWEEN = "\n\n"


def generated_examples(name: str, n: int, langs: Sequence[str]) -> list[Problem]:
    """n training problems of a generated task, at the test's difficulty, in the languages in turn."""
    level = DEFAULT.test_difficulty
    return [sample_problem(name, langs[i % len(langs)], level, "train", "shots", i) for i in range(n)]


def hold_back(problems: Sequence[Problem], n: int, name: str) -> tuple[list[Problem], list[Problem]]:
    """The problems of a file to ask, and its last n, the examples."""
    if n >= len(problems):
        raise ConfigError(f"--shots={n}: {name} has {len(problems)} problems, and at least one must be left to ask")
    return list(problems[: len(problems) - n]), list(problems[len(problems) - n :])


def worked(problem: Problem, *, thinks: bool) -> str:
    """What a good model would reply: with the thought apart, or written out."""
    judge = judge_of(problem)
    if judge is None:
        thought = task(problem.task).thought(problem, random.Random(f"shots/{problem.key}"))
        plain = f"{thought}\n{ANSWER_OPEN}{worked_answer(problem)}{ANSWER_CLOSE}"
        return response(problem, thought) if thinks else plain
    if judge.kind == "code":
        whole = f"{problem.prompt}{problem.answer}" if problem.data["entry_point"] else problem.answer
        return f"```python\n{whole.strip()}\n```"
    solution = problem.data.get("solution", "")
    boxed = f"The answer is \\boxed{{{problem.answer}}}."
    return f"{solution}\n{boxed}" if solution else boxed


def turns(examples: Sequence[Problem], *, thinks: bool) -> tuple[Message, ...]:
    """The examples as turns of a chat."""
    pairs = (
        ({"role": "user", "content": question(each)}, {"role": "assistant", "content": worked(each, thinks=thinks)})
        for each in examples
    )
    return tuple(message for pair in pairs for message in pair)


def plain(messages: Sequence[Message]) -> str:
    """A chat as text, up to where the next answer begins."""
    marks = {"user": QUESTION, "assistant": ANSWER}
    blocks = [f"{marks[message['role']]} {message['content']}" for message in messages]
    joined = [f"{asked}\n{answered}" for asked, answered in zip(blocks[::2], blocks[1::2], strict=False)]
    return BETWEEN.join([*joined, f"{blocks[-1]}\n{ANSWER}"])


def cut_plain(text: str) -> tuple[str, bool]:
    """The reply of a base model, and whether it ended: it goes on with the next question where it is done."""
    reply, ended, _ = text.partition(f"\n{QUESTION}")
    return reply.strip(), bool(ended)
