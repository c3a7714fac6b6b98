"""Rejection sampling: which of a teacher's answers become chats to learn from, and why the others do not.

R1's second fine-tuning (arXiv 2501.12948, 2.3.3) keeps right answers and leaves out mixed languages, long paragraphs
and chaos. Here every answer has exactly one fate, the first of `FATES` that holds, and all are counted:

    unjudged     the verifier failed on it (tasks/judging.py)
    cut          did not end by itself
    wrong        the verifier says so
    layout       right, but without one thought that ended and one answer after it, as the task lays them out
    mixed        in another language than its question, or in several (`answers.language`)
    unreadable   a line that comes again and again, or bytes that are no text
    long         more tokens than `answers.longest`
    duplicate    the same words answered the same question before
    surplus      `answers.keep` better or equal answers to this problem are kept
    kept
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from sobre.data.sources import Chat
from sobre.eval.answer import Reply
from sobre.eval.measure import Marked, marks
from sobre.tasks.base import Problem
from sobre.tasks.config import JUDGE_S
from sobre.tasks.format import THINK_CLOSE, THINK_OPEN, format_ok, question, thought_ok, without_tags
from sobre.tasks.judges import judge_of
from sobre.tasks.language import consistency
from sobre.train.config import AnswersConfig

Fate = Literal["unjudged", "cut", "wrong", "layout", "mixed", "unreadable", "long", "duplicate", "surplus", "kept"]
FATES: tuple[Fate, ...] = get_args(Fate)


@dataclass
class Choice:
    """What was chosen so far, and the count of every fate."""

    cfg: AnswersConfig
    judge_s: float = JUDGE_S
    chats: list[Chat] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    problems: int = 0
    solved: int = 0
    """Problems with a kept answer."""
    _seen: set[tuple[str, str]] = field(default_factory=set, repr=False)

    def take(self, problems: Sequence[Problem], replies: Sequence[Sequence[Reply]]) -> None:
        """Decide on the answers to these problems; the shortest are kept first. Raises RunError where the verifier
        hangs, or fails on most answers."""
        sorted_ = [sorted(group, key=lambda reply: reply.n_tokens) for group in replies]
        marked = marks(problems, sorted_, judge_s=self.judge_s)
        for problem, group, found in zip(problems, sorted_, marked, strict=True):
            self.problems += 1
            kept = 0
            for reply, mark in zip(group, found, strict=True):
                fate = self._fate(problem, reply, mark, kept)
                self.counts[fate] += 1
                if fate == "kept":
                    kept += 1
                    self._seen.add((problem.prompt, reply.text))
                    self.chats.append(Chat(to_chat(problem, reply), problem.task, problem.lang, where=problem.key))
            self.solved += kept > 0

    def figures(self) -> dict[str, int]:
        """For the report and the log: problems, answers, and the count of every fate."""
        found: dict[str, int] = {"problems": self.problems, "solved": self.solved, "answers": self.counts.total()}
        return found | {str(fate): self.counts[fate] for fate in FATES}

    def _fate(self, problem: Problem, reply: Reply, mark: Marked, kept: int) -> Fate:
        if mark.fault:
            return "unjudged"
        if not reply.finished:
            return "cut"
        if not mark.right:
            return "wrong"
        if not laid_out(problem, reply.text):
            return "layout"
        if consistency(without_tags(reply.text), problem.lang) < self.cfg.language:
            return "mixed"
        if not readable(reply.text, self.cfg.repeats):
            return "unreadable"
        if self.cfg.longest and reply.n_tokens > self.cfg.longest:
            return "long"
        if (problem.prompt, reply.text) in self._seen:
            return "duplicate"
        return "surplus" if kept >= self.cfg.keep else "kept"


def laid_out(problem: Problem, text: str) -> bool:
    """Whether an answer has the layout that the student shall learn; one without any thought may be plain."""
    if judge_of(problem) is None:
        return format_ok(text)
    return thought_ok(text) if THINK_CLOSE in text else bool(text.strip())


def readable(text: str, repeats: int) -> bool:
    """No line `repeats` times or more (empty ones apart), and no bytes that were no text."""
    lines = Counter(line.strip() for line in text.splitlines() if line.strip())
    return "\N{REPLACEMENT CHARACTER}" not in text and max(lines.values(), default=0) < repeats


def to_chat(problem: Problem, reply: Reply) -> list[Mapping[str, str]]:
    """Question and answer as messages; the thought, where there is one, in its tags."""
    said = f"{THINK_OPEN}\n{reply.text}" if THINK_CLOSE in reply.text else reply.text
    return [{"role": "user", "content": question(problem)}, {"role": "assistant", "content": said}]
