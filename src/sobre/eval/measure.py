"""An evaluation on named tasks: k replies to each problem, every one kept, and what they come to.

average@k is the share of right replies, pass@k the unbiased estimate (`stats.pass_at_k`), majority@k the share of
problems whose most frequent answer is right. Intervals are a bootstrap over problems: replies to one problem are no
independent evidence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sobre.data.overlap import TestOverlap
from sobre.errors import DataError
from sobre.eval.answer import Answerer, Reply, Sampling
from sobre.eval.score import majority
from sobre.eval.stats import bootstrap, pass_at_k
from sobre.tasks.base import Problem
from sobre.tasks.format import ANSWER_OPEN, THINK_CLOSE, extract_answer, question
from sobre.tasks.judges import judge_of
from sobre.tasks.registry import task


@dataclass(frozen=True)
class Marked:
    """A reply, read and judged."""

    text: str
    answer: str | None
    right: bool
    finished: bool
    n_tokens: int


@dataclass(frozen=True)
class Item:
    """A problem and all replies to it."""

    task: str
    key: str
    prompt: str
    reference: str
    replies: tuple[Marked, ...]

    @property
    def n_right(self) -> int:
        return sum(reply.right for reply in self.replies)


def measure(problems: Sequence[Problem], answerer: Answerer, k: int, how: Sampling) -> list[Item]:
    """Ask, read, judge."""
    replies = answerer.answer([question(problem) for problem in problems], k, how)
    return [
        Item(each.task, each.key, each.prompt, each.answer, tuple(mark(each, reply) for reply in group))
        for each, group in zip(problems, replies, strict=True)
    ]


def mark(problem: Problem, reply: Reply) -> Marked:
    """Judge a reply; one that was cut is wrong. Generated tasks ask for no layout in words, so that of a model that
    does not know ours, all that follows its thought is the answer."""
    judge, answer = judge_of(problem), None
    if not reply.finished:
        return Marked(reply.text, None, False, False, reply.n_tokens)
    if judge is not None:
        answer = judge.extract(problem, reply.text)
        right = answer is not None and judge.right(problem, answer)
    else:
        thought, closed, rest = reply.text.rpartition(THINK_CLOSE)
        if ANSWER_OPEN in reply.text:
            answer = extract_answer(reply.text if closed else f"{THINK_CLOSE}{reply.text}")
        else:
            answer = rest.strip() or None
        right = answer is not None and task(problem.task).score(problem, answer)
    return Marked(reply.text, answer, right, True, reply.n_tokens)


def summary(items: Sequence[Item], *, seed: int) -> dict[str, Any]:
    """The figures of one task."""
    k = len(items[0].replies)
    figures = {f"pass_at_{j}": [pass_at_k(k, item.n_right, j) for item in items] for j in _powers(k)}
    figures["average_at_k"] = [item.n_right / k for item in items]
    figures["majority_at_k"] = [float(_majority_is_right(item)) for item in items]
    replies = [reply for item in items for reply in item.replies]
    return {
        "n": len(items),
        "k": k,
        **{name: _figure(values, seed) for name, values in figures.items()},
        "truncated": sum(not reply.finished for reply in replies) / len(replies),
        "no_answer": sum(reply.answer is None for reply in replies) / len(replies),
        "mean_tokens": sum(reply.n_tokens for reply in replies) / len(replies),
    }


def compare(ours: Sequence[Item], theirs: Mapping[str, Sequence[bool]], *, seed: int) -> dict[str, Any]:
    """Share right of these items minus that of another evaluation of the same problems, with a paired bootstrap.

    `theirs` holds the verdicts of each problem by its key. Raises DataError unless it holds exactly these problems.
    """
    keys = {item.key for item in ours}
    if keys != set(theirs):
        raise DataError(
            f"the other evaluation has other problems: {len(keys & set(theirs))} are shared, {len(keys)} here,"
            f" {len(theirs)} there; both must be asked the same"
        )
    differences = [item.n_right / len(item.replies) - sum(theirs[item.key]) / len(theirs[item.key]) for item in ours]
    return {
        "difference": _figure(differences, seed),
        "better": sum(d > 0 for d in differences),
        "worse": sum(d < 0 for d in differences),
    }


def contamination(items: Sequence[Item], texts: Sequence[str]) -> dict[str, Any]:
    """Which problems stand in the training text (runs of 13 words, or short problems whole)."""
    overlap = TestOverlap([item.prompt for item in items])
    found = sorted({number for text in texts if (number := overlap.find(text)) is not None})
    return {"documents": len(texts), "found": [items[number].key for number in found]}


def to_dict(items: Sequence[Item]) -> list[dict[str, Any]]:
    """All items, as JSON data."""
    return [asdict(item) for item in items]


def verdicts(document: Mapping[str, Any], name: str) -> dict[str, list[bool]]:
    """The verdicts of a written evaluation on one task, by problem."""
    return {i["key"]: [r["right"] for r in i["replies"]] for i in document["items"] if i["task"] == name}


def _powers(k: int) -> list[int]:
    return sorted({1, *(2**i for i in range(1, 12) if 2**i < k), k})


def _majority_is_right(item: Item) -> bool:
    winner = majority([reply.answer for reply in item.replies])
    return winner is not None and item.replies[winner].right


def _figure(values: Sequence[float], seed: int) -> dict[str, float]:
    low, high = bootstrap(values, seed=seed)
    return {"value": sum(values) / len(values), "ci_low": low, "ci_high": high}
