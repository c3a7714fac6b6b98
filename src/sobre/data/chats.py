"""Chats as ids with a mask: the loss counts what the assistant wrote, and no chat is ever truncated.

A chat whose earlier answers have thoughts gives one sample for each of them, since the layout drops a thought once a
later user message follows: every thought and every answer is trained on exactly once. Templates made elsewhere: see
tokenizer/trained.py.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np

from sobre.data.config import DataConfig
from sobre.data.events import Event, Events
from sobre.data.loader import LoaderState, Order
from sobre.data.overlap import TestOverlap
from sobre.data.sources import Chat
from sobre.errors import DataError
from sobre.tokenizer.chat import Message, check, layout, split_thought
from sobre.tokenizer.tokenizer import Tokenizer

BATCH_CHATS = 512


@dataclass(frozen=True)
class Sample:
    """One sequence to learn from."""

    ids: np.ndarray
    mask: np.ndarray
    """True where the loss counts the token."""
    where: str = ""


@dataclass(frozen=True)
class ChatSamples:
    """All samples in flat arrays."""

    ids: np.ndarray
    mask: np.ndarray
    ends: np.ndarray
    """Where each sample ends."""
    where: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> Sample:
        span = slice(self.ends[i - 1] if i else 0, self.ends[i])
        return Sample(self.ids[span], self.mask[span], self.where[i])

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return int(np.diff(self.ends, prepend=0).max())

    @property
    def n_trained(self) -> int:
        """Tokens that the loss counts."""
        return int(self.mask.sum())


class ChatCounts:
    """Chats that equal an earlier one, and those that hold a test problem; left out only if the recipe says so."""

    def __init__(self, test_prompts: Sequence[str]) -> None:
        self.overlap = TestOverlap(test_prompts)
        self.n = 0
        self.duplicates = Event()
        self.test_overlap = Event()

    def keep(self, chats: Iterable[Chat], cfg: DataConfig) -> Iterator[Chat]:
        """The chats that stay."""
        seen: dict[bytes, str] = {}
        for chat in chats:
            self.n += 1
            whole = json.dumps([dict(message) for message in chat.messages], sort_keys=True)
            digest = blake2b(whole.encode(), digest_size=16).digest()
            is_duplicate = digest in seen
            if is_duplicate:
                self.duplicates.add(f"{chat.where} equals {seen[digest]}")
            seen.setdefault(digest, chat.where)
            text = "\n".join(piece.text for piece in layout(chat.messages))
            problem = self.overlap.find(text)
            if problem is not None:
                self.test_overlap.add(f"{chat.where} holds test problem {problem}")
            if (is_duplicate and cfg.remove_duplicates) or (problem is not None and cfg.remove_test_overlap):
                continue
            yield chat

    def to_json(self, cfg: DataConfig) -> dict[str, Any]:
        """The counts, for records.json."""
        return {
            "chats": self.n,
            "duplicates": vars(self.duplicates) | {"removed": cfg.remove_duplicates},
            "test_overlap": vars(self.test_overlap)
            | {"removed": cfg.remove_test_overlap, "problems": self.overlap.n_prompts},
        }


def tokenize_chats(chats: Iterable[Chat], tokenizer: Tokenizer, *, max_len: int, events: Events) -> ChatSamples:
    """Samples of at most `max_len` tokens; a longer chat is a bad record, refused or left out and counted."""
    ids: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    where: list[str] = []
    for chat, new_ids, new_mask in _rendered(chats, tokenizer):
        if len(new_ids) > max_len:
            reason = f"the chat is {len(new_ids):,} tokens long; a sequence has at most {max_len:,}"
            events.reject("chat too long", chat.where or "a chat", reason, "shorter chats, or a longer context")
            continue
        ids.append(np.array(new_ids, np.int32))
        masks.append(np.array(new_mask, bool))
        where.append(chat.where)
    if not ids:
        raise DataError("there is no chat to learn from")
    ends = np.cumsum([len(part) for part in ids])
    return ChatSamples(np.concatenate(ids), np.concatenate(masks), ends, tuple(where))


def _rendered(chats: Iterable[Chat], tokenizer: Tokenizer) -> Iterator[tuple[Chat, list[int], list[int]]]:
    if not tokenizer.has_own_layout:
        yield from ((chat, *sample) for chat in chats for sample in tokenizer.render_trained(chat.messages))
        return
    parts = ((chat, *part) for chat in chats for part in trained_parts(chat.messages))
    while batch := list(islice(parts, BATCH_CHATS)):
        rendered = tokenizer.render_batch_with_mask(
            [messages for _, messages, _ in batch], train_from=[start for _, _, start in batch]
        )
        yield from ((chat, *sample) for (chat, _, _), sample in zip(batch, rendered, strict=True))


def trained_parts(messages: Sequence[Message]) -> Iterator[tuple[Sequence[Message], int]]:
    """The beginnings of a chat to train on, each with the message from which its loss counts."""
    check(messages)
    start = 0
    for i, message in enumerate(messages):
        is_round_end = i + 1 < len(messages) and messages[i + 1]["role"] == "user" and message["role"] == "assistant"
        if is_round_end and any(_has_thought(inner) for inner in messages[start : i + 1]):
            yield messages[: i + 1], start
            start = i + 1
    yield messages, start


def _has_thought(message: Message) -> bool:
    return message["role"] == "assistant" and bool(split_thought(message)[0])


class ChatLoader:
    """Samples in a keyed order; how many are asked for at a time does not change it."""

    def __init__(self, samples: ChatSamples, seed: int) -> None:
        self._samples, self._order = samples, Order(len(samples), seed)

    def take_tokens(self, max_tokens: int) -> list[Sample]:
        """The next samples, whole, as many as fit into `max_tokens`; one that cannot fit alone is an error."""
        taken: list[Sample] = []
        left = max_tokens
        while True:
            before = self._order.state()
            sample = self._samples[int(self._order.take(1)[0])]
            if len(sample.ids) > left:
                self._order.restore(before)
                break
            taken.append(sample)
            left -= len(sample.ids)
        if not taken:
            raise DataError(
                f"{sample.where or 'a chat'}: {len(sample.ids):,} tokens do not fit into a batch of {max_tokens:,};"
                f" the batch needs at least {len(sample.ids):,}"
            )
        return taken

    def state(self) -> LoaderState:
        """Where the order is."""
        return self._order.state()

    def restore(self, state: LoaderState) -> None:
        """Go on from a saved place."""
        self._order.restore(state)
