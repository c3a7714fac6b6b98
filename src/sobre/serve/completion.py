"""One chat request from messages to text: rendered, checked against the context, answered, counted, priced."""

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from sobre.engine.request import Request, SamplingParams
from sobre.errors import SobreError
from sobre.ledger.prices import Price
from sobre.serve.bridge import Bridge, Stream
from sobre.serve.errors import ApiError, context_exceeded, engine_failed, invalid
from sobre.serve.events import AnswerReader, Delta, stop_ids
from sobre.serve.price import cost_basis
from sobre.serve.schema import ChatRequest
from sobre.tokenizer.tokenizer import Tokenizer


class Defaults(Protocol):
    """How to sample when the request does not say."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...


@dataclass(frozen=True)
class Finish:
    """A choice is complete: "stop" (end token or stop string) or "length" (no room left)."""

    reason: str


def engine_requests(
    chat: ChatRequest, request_id: str, tokenizer: Tokenizer, max_context: int, defaults: Defaults
) -> list[Request]:
    """One engine request per choice; raises the 400 that says what would fit."""
    try:
        prompt_ids = tuple(tokenizer.render([message.plain() for message in chat.messages], generation_prompt=True))
    except SobreError as error:
        raise invalid(f"{error}", "messages") from None
    room = max_context - len(prompt_ids)
    limit = chat.answer_limit
    if room < 1 or (limit is not None and limit > room):
        raise context_exceeded(len(prompt_ids), limit, max_context)
    seed = secrets.randbits(62) if chat.seed is None else chat.seed
    params = [
        SamplingParams(
            max_tokens=room if limit is None else limit,
            temperature=defaults.temperature if chat.temperature is None else chat.temperature,
            top_p=defaults.top_p if chat.top_p is None else chat.top_p,
            top_k=chat.top_k,
            stop_ids=stop_ids(tokenizer),
            seed=choice_seed(seed, index),
        )
        for index in range(chat.n)
    ]
    return [Request(f"{request_id}/{index}", prompt_ids, sampling) for index, sampling in enumerate(params)]


def choice_seed(seed: int, index: int) -> int:
    """Choice 0 has the request's own seed, so n=1 and the first of n=4 are the same text."""
    return seed if index == 0 else (seed + index * 0x9E3779B97F4A7C15) % 2**63  # an odd step: no two choices meet


@dataclass
class Completion:
    """The answer to one request while it is being written, and what it has used."""

    id: str
    model: str
    n_prompt: int
    readers: list[AnswerReader]
    price: Price
    created: int = field(default_factory=lambda: int(time.time()))
    seconds: float = 0.0

    async def events(self, stream: Stream) -> AsyncIterator[tuple[int, Delta | Finish]]:
        """Deltas of every choice, each ended by its Finish. Leaving early frees the engine."""
        try:
            async for part in stream.parts():
                self.seconds += part.seconds
                reader = self.readers[part.index]
                for delta in reader.push(part.token_id):
                    yield part.index, delta
                if part.finish_reason is None and not reader.stopped:
                    continue
                for delta in reader.close():
                    yield part.index, delta
                if part.finish_reason is None:
                    stream.abort(part.index)
                yield part.index, Finish("stop" if reader.stopped else part.finish_reason or "stop")
        finally:
            stream.close()

    @property
    def n_tokens(self) -> int:
        """Tokens written, tags and end tokens included."""
        return sum(reader.n_tokens for reader in self.readers)

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object, with the cost and how it was computed."""
        n_reasoning = sum(reader.n_reasoning for reader in self.readers)
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_tokens,
            "total_tokens": self.n_prompt + self.n_tokens,
            "completion_tokens_details": {"reasoning_tokens": n_reasoning},
            "cost_usd": self.price.usd(self.seconds),
            "cost_basis": cost_basis(self.price, self.seconds),
        }

    def chunk(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """One event of a stream."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def usage_chunk(self) -> dict[str, Any]:
        """The event before [DONE] that carries the usage alone."""
        return self._head("chat.completion.chunk") | {"choices": [], "usage": self.usage()}

    def body(self, texts: list[dict[str, str]], reasons: list[str]) -> dict[str, Any]:
        """The whole answer, when it was not streamed."""
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": text["content"],
                    "reasoning_content": text["reasoning"],
                    "refusal": None,
                },
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return self._head("chat.completion") | {"choices": choices, "usage": self.usage()}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass(frozen=True)
class ChatService:
    """One model that answers."""

    model: str
    tokenizer: Tokenizer
    bridge: Bridge
    price: Price
    max_context: int
    max_open: int
    """Requests that may run or wait at the same time."""
    defaults: Defaults

    def begin(self, chat: ChatRequest, request_id: str, requests: list[Request]) -> tuple[Completion, Stream]:
        """Hand the request to the engine, or say why not now."""
        if self.bridge.n_open + chat.n > self.max_open:
            message = f"The server already holds {self.bridge.n_open} requests, of at most {self.max_open}. Try later."
            raise ApiError(429, message, code="too_many_requests", headers={"retry-after": "2"})
        readers = [AnswerReader(self.tokenizer, requests[0].prompt_ids, chat.stop) for _ in range(chat.n)]
        completion = Completion(request_id, self.model, len(requests[0].prompt_ids), readers, self.price)
        try:
            return completion, self.bridge.submit(requests)
        except SobreError as error:
            raise ApiError(503, f"{error}", code="engine_stopped") from None

    def prepare(self, chat: ChatRequest, request_id: str) -> list[Request]:
        """Render and check; slow for long texts, so call it off the event loop."""
        if chat.model != self.model:
            raise ApiError(
                404,
                f"The model '{chat.model[:100]}' does not exist; this server has '{self.model}'.",
                code="model_not_found",
                param="model",
            )
        return engine_requests(chat, request_id, self.tokenizer, self.max_context, self.defaults)


def as_api_error(error: Exception) -> ApiError:
    """What the client is told when the engine's side failed."""
    if isinstance(error, ApiError):
        return error
    return engine_failed(f"{error}" if isinstance(error, SobreError) else type(error).__name__)
