"""The answer to one request while it is being written: its events, what it has used, what it cost."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from sobre.engine.request import Token
from sobre.errors import SobreError
from sobre.ledger.prices import Price
from sobre.serve.ask import Ask
from sobre.serve.bridge import Part
from sobre.serve.errors import ApiError, engine_failed
from sobre.serve.events import AnswerReader, Delta, Shown
from sobre.serve.price import cost_basis


@dataclass(frozen=True)
class Finish:
    """A choice is complete.

    `reason` is OpenAI's: "stop" (end token or stop string), "tool_calls", or "length" (no room left, no time left, or
    going in circles); `detail` says which of these it was where that is not plain.
    """

    reason: str
    detail: str | None = None
    last: Token | None = None
    """The engine's last token, where the engine ended the choice."""


@dataclass(frozen=True)
class Piece:
    """Something to show, and the tokens that it was written with."""

    shown: Shown
    tokens: tuple[Token, ...] = ()


Event = Piece | Finish


@dataclass
class Answer:
    """What one request gets."""

    ask: Ask
    model: str
    price: Price
    created: int = field(default_factory=lambda: int(time.time()))
    deadline: float | None = None
    """On the event loop's clock: what is written by then is the answer."""
    seconds: float = 0.0
    began: float = field(default_factory=time.perf_counter)
    elapsed_s: float = 0.0
    """From the beginning to the end."""
    first_token_s: float | None = None
    """From the beginning to the first token."""
    n_cached: int = 0
    """Tokens of the prompts that were in the cache; a prompt of several choices counts by its first."""
    written: list[int] = field(default_factory=list)
    """Tokens of the first choice."""
    _texts: list[str] = field(default_factory=list)
    _begun: set[int] = field(default_factory=set)
    reasons: dict[int, str] = field(default_factory=dict)
    """How each finished choice ended."""

    @property
    def id(self) -> str:
        return self.ask.id

    @property
    def n_choices(self) -> int:
        return len(self.readers)

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompts."""
        return self.ask.n_prompt

    @property
    def readers(self) -> list[AnswerReader]:
        return self.ask.readers

    async def events(self, stream: Any) -> AsyncIterator[tuple[int, Event]]:
        """Pieces of every choice, each choice ended by its Finish. Leaving early frees the engine."""
        waiting: dict[int, list[Token]] = {}
        open_choices = set(range(len(self.readers)))
        parts = stream.parts()
        try:
            while open_choices:
                part = await self._next(parts)
                if part is None:  # out of time
                    for index in sorted(open_choices):
                        for event in self._end(index, None, waiting.pop(index, [])):
                            yield index, event
                        stream.abort(index)
                    return
                reader, token = self.readers[part.index], part.token
                self._count(part)
                if token.error is not None:
                    raise engine_failed(token.error)
                held = waiting.setdefault(part.index, [])
                if self.ask.n_logprobs is not None and reader.shows(token.token_id):
                    held.append(token)
                for shown in reader.push(token.token_id):
                    kept = self._within(shown, held) if reader.stopped else held
                    if part.index == 0 and isinstance(shown, Delta) and shown.kind == "content":
                        self._texts.append(shown.text)
                    is_thought = isinstance(shown, Delta) and shown.kind == "reasoning"
                    yield part.index, Piece(shown, () if is_thought else tuple(kept))
                    held.clear()
                if token.finish_reason is None and not reader.stopped:
                    continue
                for event in self._end(part.index, token.finish_reason, held, token):
                    yield part.index, event
                if token.finish_reason is None:
                    stream.abort(part.index)
                open_choices.discard(part.index)
        finally:
            stream.close()

    def ended(self) -> None:
        """Nothing more comes."""
        self.elapsed_s = time.perf_counter() - self.began

    async def _next(self, parts: AsyncIterator[Part]) -> Part | None:
        """The next token; None once the deadline has passed."""
        if self.deadline is None:
            return await anext(parts)
        try:
            async with asyncio.timeout_at(self.deadline):
                return await anext(parts)
        except TimeoutError:
            return None

    def _count(self, part: Part) -> None:
        if part.index not in self._begun:
            self._begun.add(part.index)
            if part.index % max(1, self.ask.n_per_prompt) == 0:
                self.n_cached += max(0, part.token.n_found)
        if part.index == 0:
            self.written.append(part.token.token_id)
        self.seconds += part.seconds
        if self.first_token_s is None:
            self.first_token_s = time.perf_counter() - self.began

    def _within(self, shown: Shown, tokens: list[Token]) -> list[Token]:
        """Of tokens that ended in a stop string, those that the text before it was written with."""
        left, kept = len(getattr(shown, "text", "").encode()), []
        for token in tokens:
            if left <= 0:
                break
            kept.append(token)
            left -= len(self.ask.token_bytes(token.token_id))
        return kept

    def _end(self, index: int, reason: str | None, held: list[Token], last: Token | None = None) -> list[Event]:
        """What was held back, and the Finish; `reason` is the engine's, None when it was stopped from here."""
        reader = self.readers[index]
        pieces: list[Event] = [Piece(shown, tuple(held) if i == 0 else ()) for i, shown in enumerate(reader.close())]
        if reader.stopped:
            finish = Finish("stop", reader.stopped_by)
        elif reason is None:
            finish = Finish("length", "deadline")
        elif reason == "stop":
            finish = Finish("tool_calls" if reader.called else "stop", None, last)
        else:
            finish = Finish("length", None if reason == "length" else reason, last)
        self.reasons[index] = finish.reason
        return [*pieces, finish]

    @property
    def n_tokens(self) -> int:
        """Tokens written, tags and end tokens included."""
        return sum(reader.n_tokens for reader in self.readers)

    @property
    def n_reasoning(self) -> int:
        return sum(reader.n_reasoning for reader in self.readers)

    @property
    def text(self) -> str:
        """The answer of the first choice, without its thought."""
        return "".join(self._texts)

    @property
    def cost_usd(self) -> float:
        return self.price.usd(self.seconds)

    @property
    def cost_basis(self) -> str:
        """How the cost was computed."""
        return cost_basis(self.price, self.seconds)

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object with DeepSeek's fields, the cost and how it was computed."""
        n_prompt = self.n_prompt
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": self.n_tokens,
            "total_tokens": n_prompt + self.n_tokens,
            "prompt_tokens_details": {"cached_tokens": self.n_cached},
            "prompt_cache_hit_tokens": self.n_cached,
            "prompt_cache_miss_tokens": n_prompt - self.n_cached,
            "completion_tokens_details": {"reasoning_tokens": self.n_reasoning},
            "cost_usd": self.cost_usd,
            "cost_basis": self.cost_basis,
        }


def as_api_error(error: Exception) -> ApiError:
    """What the client is told when the engine's side failed."""
    if isinstance(error, ApiError):
        return error
    return engine_failed(f"{error}" if isinstance(error, SobreError) else type(error).__name__)
