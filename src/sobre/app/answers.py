"""A teacher's answers for a stage to learn from: asked for in parts, chosen by a verifier, told of in figures.

    state/answers/STAGE/part-NNNN.json   the replies to one part of the problems; a kill loses the part at hand
    answers/STAGE.jsonl                  the chats that the stage learns from
    answers/STAGE.json                   the fate of every answer (`distill.choose`)

Until `answers.n_problems` are answered, or `answers.share` of the stage's budget is spent, which is decided after each
part and recorded.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sobre.app.problems import training_problem
from sobre.app.records import exam_prompts, keep_records
from sobre.app.session import Session, Spending
from sobre.app.teacher import open_answerer
from sobre.data.chats import ChatCounts, ChatSamples, tokenize_chats
from sobre.data.events import Events
from sobre.data.sources import Chat, read_chats
from sobre.distill.choose import FATES, Choice
from sobre.engine.engine import Engine
from sobre.errors import RunError
from sobre.eval.answer import Answerer, Reply, Sampling
from sobre.ledger.ledger import Entry
from sobre.runtime.files import write_json, write_text
from sobre.schemas import VERSION
from sobre.tasks.base import Problem
from sobre.tasks.format import question
from sobre.tasks.sampling import plain_chat
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.config import AnswersConfig, FineTuneConfig

PART = 32
"""Problems asked at once."""
LOST = tuple(fate for fate in FATES if fate != "kept")


def answered_examples(
    session: Session, stage: str, cfg: FineTuneConfig, tokenizer: Tokenizer, *, max_len: int, allowance: float
) -> ChatSamples:
    """The samples of a stage that learns from a teacher: its kept answers, and chats without a thought among them."""
    choice = gather(session, stage, cfg.answers, allowance)
    if not choice.chats:
        counts = ", ".join(f"{n:,} {fate}" for fate, n in choice.counts.most_common())
        raise RunError(
            f"{stage}: no answer of {cfg.answers.teacher} is fit to learn from ({counts}); a larger budget, easier"
            f" tasks (tasks.names) or a stronger teacher would help. The models so far stay, and"
            f" `sobre report {session.folder.path}` writes what is known of them"
        )
    plain = plain_chats(session, stage, cfg, len(choice.chats))
    too_long = Events("count")
    samples = tokenize_chats([*choice.chats, *plain], tokenizer, max_len=max_len, events=too_long)
    figures = {**choice.figures(), "plain": len(plain), "too_long_for_the_student": too_long.n_bad}
    session.processes.decide(lambda: _write(session, stage, cfg.answers, figures, [*choice.chats, *plain]))
    return samples


def gather(session: Session, stage: str, cfg: AnswersConfig, allowance: float) -> Choice:
    """Ask what was not asked yet; decide on all replies."""
    name, folder = f"answers:{stage}", session.folder.state / "answers" / stage
    choice = Choice(cfg, session.recipe.tasks.judge_s)
    start = session.events.decide(
        name,
        0,
        "begin",
        lambda: {"used": session.meter.used(), "end_at": session.meter.used() + cfg.share * allowance},
    )
    assert start is not None, "the log of a part begins with its begin event"
    parts = session.processes.decide(
        lambda: [json.loads(path.read_text()) for path in sorted(folder.glob("part-*.json"))]
    )
    for index, part in enumerate(parts):
        choice.take(problems(session, stage, index, len(part["replies"])), _replies(part))
    if name in session.done:
        return choice
    if parts:
        session.meter.restore(parts[-1]["meter"])
        session.ledger.append(Entry.from_dict(parts[-1]["entry"]))
    teacher = Teacher(session, cfg)
    spending = Spending(session, name, step=len(parts))
    index, took = len(parts), 0.0
    session.console.stage(f"{stage} asks", cfg.n_problems or PART)
    while (n := _due(session, name, cfg, index, choice.problems, start["end_at"], took)) > 0:
        before, asked = session.meter.used(), problems(session, stage, index, n)
        replies, flops = session.processes.decide(partial(teacher.answer, asked, index))
        choice.take(asked, replies)
        spending.add(tokens=sum(reply.n_tokens for group in replies for reply in group), flops=flops)
        session.meter.add_flops(flops)
        index += 1
        entry = spending.due(index)
        if session.processes.is_first:
            _keep(folder / f"part-{index:04d}.json", replies, session.meter.state(), entry)
        session.ledger.append(entry)
        took = session.meter.used() - before
        _show(session, choice, cfg.n_problems or _expected(choice.problems, start, session.meter.used()))
    session.finish(name)
    return choice


def problems(session: Session, stage: str, part: int, n: int) -> list[Problem]:
    """The problems of a part: training problems of the run's tasks, in a stream of this stage's own."""
    return [training_problem(session, f"{stage}/{session.recipe.seed}", part * PART + i) for i in range(n)]


def plain_chats(session: Session, stage: str, cfg: FineTuneConfig, n_kept: int) -> list[Chat]:
    """Chats without a thought to mix in: some of the recipe's files, or easy problems answered at once."""
    share, recipe = cfg.answers.plain_share, session.recipe
    n = round(n_kept * share / (1 - share))
    if not cfg.paths and not recipe.tasks.names:
        return []  # nothing but problems from files: who wants both modes gives chats without a thought
    if not cfg.paths:
        chats = (plain_chat(recipe.tasks, f"{stage}/{recipe.seed}", index) for index in range(n))
        return [Chat(messages, "generated", where=f"plain chat {i}") for i, messages in enumerate(chats)]
    events, counts = Events(recipe.data.on_bad_record), ChatCounts(exam_prompts(session))
    found = list(counts.keep(read_chats(cfg.paths, recipe.data, events), recipe.data))
    keep_records(session, stage, events, counts)
    return random.Random(f"plain/{stage}/{recipe.seed}").sample(found, min(n, len(found)))


def _due(session: Session, name: str, cfg: AnswersConfig, index: int, asked: int, end_at: float, took: float) -> int:
    """Problems of the next part; 0 when there are enough, or the share of the budget is spent."""
    if cfg.n_problems:
        return min(PART, cfg.n_problems - asked)
    if index == 0:
        return PART
    used = session.meter.used()
    end = session.events.decide(
        name, index, "end", lambda: {"reason": "budget", "used": used} if used + took / 2 >= end_at else None
    )
    return PART if end is None else 0


def _expected(asked: int, start: Mapping[str, float], used: float) -> int:
    """Problems that the share of the budget will have paid for, at what those so far took."""
    spent, whole = used - start["used"], start["end_at"] - start["used"]
    return max(asked, round(asked * whole / spent)) if spent > 0 else asked


def _show(session: Session, choice: Choice, total: int) -> None:
    kept = choice.counts["kept"] / choice.counts.total()
    session.console.update(choice.problems, total, kept=kept, usd=session.usd(), left_s=session.left_s())


class Teacher:
    """Opened when it is first asked, in the process that asks."""

    def __init__(self, session: Session, cfg: AnswersConfig) -> None:
        self._session, self._cfg = session, cfg
        self._open: tuple[Answerer, Engine | None] | None = None

    def answer(self, asked: Sequence[Problem], part: int) -> tuple[list[list[Reply]], float]:
        """k replies to each problem, and the model FLOPs that they took here."""
        self._open = self._open or open_answerer(
            self._session, self._cfg.teacher, self._cfg.model_name, self._cfg.key_env
        )
        answerer, engine = self._open
        before = engine.stats.flops if engine is not None else 0.0
        how = Sampling(
            max_tokens=self._cfg.max_tokens,
            temperature=self._cfg.temperature,
            top_p=self._cfg.top_p,
            seed=part * PART * self._cfg.k,
        )
        replies = answerer.answer([question(problem) for problem in asked], self._cfg.k, how)
        return replies, engine.stats.flops - before if engine is not None else 0.0


def _keep(path: Path, replies: list[list[Reply]], meter: dict[str, float], entry: Entry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    said = [[asdict(reply) for reply in group] for group in replies]
    write_json(path, {"schema": VERSION, "replies": said, "meter": meter, "entry": entry.to_dict()})


def _replies(part: Mapping[str, Any]) -> list[list[Reply]]:
    return [[Reply(**reply) for reply in group] for group in part["replies"]]


def _write(session: Session, stage: str, cfg: AnswersConfig, figures: dict[str, int], chats: list[Chat]) -> None:
    folder: Path = session.folder.path / "answers"
    folder.mkdir(exist_ok=True)
    rows = [json.dumps({"messages": list(chat.messages), "source": chat.source}, ensure_ascii=False) for chat in chats]
    write_text(folder / f"{stage}.jsonl", "\n".join([*rows, ""]))
    write_json(folder / f"{stage}.json", {"schema": VERSION, "teacher": cfg.teacher, **figures})
    lost = ", ".join(f"{n:,} {fate}" for fate, n in figures.items() if fate in LOST and n)
    session.console.say(
        f"{stage}: {figures['kept']:,} of {figures['answers']:,} answers of {cfg.teacher} are learned from"
        f" ({lost or 'none was lost'}), and {figures['plain']:,} chats without a thought"
    )
