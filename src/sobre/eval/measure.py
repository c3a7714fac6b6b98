"""An evaluation on named tasks: k replies to each problem, every one kept, and what they come to.

average@k is the share of right replies, pass@k the unbiased estimate (`stats.pass_at_k`), majority@k the share of
problems whose most frequent answer is right. Intervals are a bootstrap over problems: replies to one problem are no
independent evidence. A problem with a reply that its judge failed on is in no figure; it is counted and shown.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sobre.data.overlap import TestOverlap
from sobre.errors import DataError, RunError
from sobre.eval.answer import Answerer, Reply, Sampling
from sobre.eval.score import majority
from sobre.eval.stats import bootstrap, paired, pass_at_k
from sobre.tasks.base import Problem
from sobre.tasks.config import JUDGE_S
from sobre.tasks.format import ANSWER_OPEN, THINK_CLOSE, extract_answer, is_right, question
from sobre.tasks.judges import judge_of
from sobre.tasks.judging import Asked, Fault, check, judge


@dataclass(frozen=True)
class Marked:
    """A reply, read and judged."""

    text: str
    answer: str | None
    right: bool
    finished: bool
    n_tokens: int
    fault: str = ""
    """Why there is no verdict: the judge failed. `right` then means nothing."""


@dataclass(frozen=True)
class Item:
    """A problem and all replies to it."""

    task: str
    key: str
    prompt: str
    reference: str
    replies: tuple[Marked, ...]
    majority: int | None
    """The first reply that gives the most frequent answer (`score.majority`)."""

    @property
    def verdicts(self) -> list[bool] | None:
        """Of its replies; None where a judge failed."""
        return [reply.right for reply in self.replies] if self.is_judged else None

    @property
    def n_right(self) -> int:
        return sum(reply.right for reply in self.replies)

    @property
    def is_judged(self) -> bool:
        """There is a verdict on every reply."""
        return not any(reply.fault for reply in self.replies)


def measure(
    problems: Sequence[Problem], answerer: Answerer, k: int, how: Sampling, *, judge_s: float = JUDGE_S
) -> list[Item]:
    """Ask, read, judge. Raises RunError where a judge hangs, or fails on most replies."""
    replies = answerer.answer([question(problem) for problem in problems], k, how)
    return [
        Item(
            each.task,
            each.key,
            each.prompt,
            each.answer,
            tuple(group),
            majority(each, [reply.answer for reply in group]),
        )
        for each, group in zip(problems, marks(problems, replies, judge_s=judge_s), strict=True)
    ]


def marks(
    problems: Sequence[Problem], replies: Sequence[Sequence[Reply]], *, judge_s: float = JUDGE_S
) -> list[list[Marked]]:
    """Judge the replies to each problem under the guard of tasks/judging.py."""
    said = [reply for group in replies for reply in group]
    asked = [
        Asked(each, reply.text, reply.finished)
        for each, group in zip(problems, replies, strict=True)
        for reply in group
    ]
    found = iter(zip(said, judge(asked, verdict, limit_s=judge_s), strict=True))
    marked = [[_marked(*next(found)) for _ in group] for group in replies]
    check([reply.fault for group in marked for reply in group if reply.fault], len(said))
    return marked


def verdict(asked: Asked) -> tuple[str | None, bool]:
    """The answer in a reply, and whether it is right; one that was cut is wrong. Generated tasks ask for no layout in
    words, so that of a model that does not know ours, all that follows its thought is the answer."""
    if not asked.finished:
        return None, False
    chosen = judge_of(asked.problem)
    if chosen is not None:
        answer = chosen.extract(asked.problem, asked.text)
    else:
        _, closed, rest = asked.text.rpartition(THINK_CLOSE)
        if ANSWER_OPEN in asked.text:
            answer = extract_answer(asked.text if closed else f"{THINK_CLOSE}{asked.text}")
        else:
            answer = rest.strip() or None
    return answer, answer is not None and is_right(asked.problem, answer)


def _marked(reply: Reply, found: tuple[str | None, bool] | Fault) -> Marked:
    if isinstance(found, Fault):
        return Marked(reply.text, None, False, reply.finished, reply.n_tokens, found.why)
    return Marked(reply.text, *found, reply.finished, reply.n_tokens)


def summary(asked: Sequence[Item], *, seed: int) -> dict[str, Any]:
    """The figures of one task, over the problems whose replies were all judged."""
    k, items = len(asked[0].replies), [item for item in asked if item.is_judged]
    if not items:
        fault = next(reply.fault for reply in asked[0].replies if reply.fault)
        raise RunError(f"{asked[0].task}: every problem has a reply that could not be judged; the first: {fault}")
    figures = {f"pass_at_{j}": [pass_at_k(k, item.n_right, j) for item in items] for j in _powers(k)}
    figures["average_at_k"] = [item.n_right / k for item in items]
    figures["majority_at_k"] = [float(_majority_is_right(item)) for item in items]
    replies = [reply for item in items for reply in item.replies]
    return {
        "n": len(items),
        "unjudged": len(asked) - len(items),
        "k": k,
        **{name: _figure(values, seed) for name, values in figures.items()},
        "truncated": sum(not reply.finished for reply in replies) / len(replies),
        "no_answer": sum(reply.answer is None for reply in replies) / len(replies),
        "mean_tokens": sum(reply.n_tokens for reply in replies) / len(replies),
    }


def compare(ours: Sequence[Item], theirs: Mapping[str, Sequence[bool] | None], *, seed: int) -> dict[str, Any]:
    """Share right of these items minus that of another evaluation of the same problems, with a paired bootstrap.

    `theirs` holds the verdicts of each problem by its key, None where a judge failed: such problems, and ours, are left
    out and counted. With one reply to each problem on both sides, `p_value` is that of the exact McNemar test. Raises
    DataError unless it holds exactly these problems.
    """
    check_same([item.key for item in ours], theirs)
    pairs = [(item, there) for item in ours if item.is_judged and (there := theirs[item.key]) is not None]
    if not pairs:
        raise DataError("the other evaluation and this one share no problem that was judged in both")
    differences = [item.n_right / len(item.replies) - sum(there) / len(there) for item, there in pairs]
    figures: dict[str, Any] = {
        "difference": _figure(differences, seed),
        "better": sum(d > 0 for d in differences),
        "worse": sum(d < 0 for d in differences),
        "unjudged": len(ours) - len(pairs),
    }
    if all(len(item.replies) == len(there) == 1 for item, there in pairs):
        right_there, right_here = [there[0] for _, there in pairs], [item.replies[0].right for item, _ in pairs]
        figures["p_value"] = paired(right_there, right_here).p_value
    return figures


def check_same(ours: Iterable[str], theirs: Iterable[str]) -> None:
    """Raise DataError unless both are the keys of the same problems."""
    here, there = set(ours), set(theirs)
    if here != there:
        raise DataError(
            f"the other evaluation has other problems: {len(here & there)} are shared, {len(here)} here,"
            f" {len(there)} there; both must be asked the same"
        )


def contamination(asked: Mapping[str, Sequence[Problem]], texts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Which problems of each task stand in the training text (runs of 13 words, or short problems whole).

    `texts` are read once, one after the other. Problems that could not be told from others there are counted.
    """
    overlaps = {name: TestOverlap([problem.prompt for problem in problems]) for name, problems in asked.items()}
    found: dict[str, set[int]] = {name: set() for name in asked}
    n_texts = 0
    for text in texts:
        n_texts += 1
        for name, overlap in overlaps.items():
            found[name] |= overlap.find_all(text)
    return {
        name: {
            "documents": n_texts,
            "found": [problems[number].key for number in sorted(found[name])],
            "not_looked_for": len(overlaps[name].not_looked_for),
        }
        for name, problems in asked.items()
    }


def to_dict(items: Sequence[Item]) -> list[dict[str, Any]]:
    """All items, as JSON data."""
    return [asdict(item) for item in items]


def verdicts(document: Mapping[str, Any], name: str) -> dict[str, list[bool] | None]:
    """The verdicts of a written evaluation on one task, by problem; None where a judge failed."""
    return {
        item["key"]: None if any(r.get("fault") for r in item["replies"]) else [r["right"] for r in item["replies"]]
        for item in document["items"]
        if item["task"] == name
    }


def _powers(k: int) -> list[int]:
    return sorted({1, *(2**i for i in range(1, 12) if 2**i < k), k})


def _majority_is_right(item: Item) -> bool:
    return item.majority is not None and item.replies[item.majority].right


def _figure(values: Sequence[float], seed: int) -> dict[str, float]:
    low, high = bootstrap(values, seed=seed)
    return {"value": sum(values) / len(values), "ci_low": low, "ci_high": high}
