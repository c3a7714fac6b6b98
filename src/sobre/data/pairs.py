"""Pairs of answers, one preferred to the other, from .jsonl files (also .gz or .zst).

    {"chosen": CHAT, "rejected": CHAT}                 two chats that begin alike
    {"prompt": CHAT, "chosen": CHAT, "rejected": CHAT} what they begin with, apart; also as `messages`

A CHAT is a list of messages, or plain text: the user's in `prompt`, the assistant's in the others. What both chats of a
pair begin with is context; the assistant's turns after it are compared.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sobre.data.config import DataConfig
from sobre.data.events import Events
from sobre.data.records import messages_of
from sobre.data.sources import jsonl_alone
from sobre.errors import DataError
from sobre.tokenizer.chat import Message
from sobre.tokenizer.tokenizer import Tokenizer

FITS = 'chats, or texts after a "prompt" or "messages", in the fields "chosen" and "rejected"'


@dataclass(frozen=True)
class Pair:
    """Two chats that begin alike."""

    chosen: Sequence[Message]
    rejected: Sequence[Message]
    n_shared: int
    """Messages at the beginning of both."""
    where: str = ""


@dataclass(frozen=True)
class TokenPair:
    """The chats of a pair as (ids, mask); the mask is 1 on the assistant's words that are compared."""

    chosen: tuple[list[int], list[int]]
    rejected: tuple[list[int], list[int]]
    where: str = ""

    @property
    def n_tokens(self) -> int:
        return len(self.chosen[0]) + len(self.rejected[0])


def read_pairs(paths: Iterable[str | Path], cfg: DataConfig, events: Events) -> Iterator[Pair]:
    """The pairs of `paths`; what is none is reported by file and line."""
    for where, row in jsonl_alone(paths, cfg, events, what="pairs", fits=FITS):
        pair = _pair(row, where, cfg, events)
        if pair is not None:
            yield pair


def tokenize_pairs(pairs: Iterable[Pair], tokenizer: Tokenizer, *, max_len: int, events: Events) -> list[TokenPair]:
    """Pairs of at most `max_len` tokens a chat; a longer one is a bad record, refused or left out and counted."""
    found = []
    for pair in pairs:
        both = [pair.chosen, pair.rejected]
        chosen, rejected = tokenizer.render_batch_with_mask(both, train_from=[pair.n_shared] * 2)
        longest = max(len(chosen[0]), len(rejected[0]))
        if longest > max_len:
            reason = f"a chat of the pair is {longest:,} tokens long; a sequence has at most {max_len:,}"
            events.reject("chat too long", pair.where, reason, "shorter chats, or a longer context")
        elif not any(chosen[1]) or not any(rejected[1]):
            events.reject("wrong pair", pair.where, "one of the two has no answer of its own", FITS)
        else:
            found.append(TokenPair(chosen, rejected, pair.where))
    if not found:
        raise DataError("there is no pair to learn from")
    return found


def _pair(row: dict[str, Any], where: str, cfg: DataConfig, events: Events) -> Pair | None:
    prompt = _turns(row.get("prompt", row.get(cfg.messages_field, [])), "user")
    chats = []
    for name in ("chosen", "rejected"):
        turns = _turns(row.get(name), "assistant")
        if prompt is None or turns is None:
            reason = f"the field {'prompt' if prompt is None else name!r} is missing, or no chat"
            events.reject("wrong fields", where, reason, FITS)
            return None
        if not prompt and isinstance(row[name], str):
            events.reject("wrong fields", where, f"the field {name!r} is text, and nothing is asked before it", FITS)
            return None
        whole = turns if turns[: len(prompt)] == prompt else prompt + turns
        messages = messages_of({cfg.messages_field: whole}, where, cfg, events)
        if messages is None:
            return None
        chats.append(messages)
    chosen, rejected = chats
    if chosen == rejected:
        events.reject("wrong pair", where, "both answers are the same", FITS)
        return None
    shared = next((i for i, (a, b) in enumerate(zip(*chats, strict=False)) if a != b), min(map(len, chats)))
    return Pair(chosen, rejected, shared, where)


def _turns(value: Any, role: str) -> list[Any] | None:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return value if isinstance(value, list) else None
