"""An answer as OpenAI's text completions: text that goes on, and text that fills a gap."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from sobre.engine.request import Token
from sobre.serve.answer import Answer, Event, Finish
from sobre.serve.chat import FLOOR, Gathered
from sobre.serve.errors import ApiError
from sobre.serve.guard import encode
from sobre.serve.text_schema import TextRequest


@dataclass(frozen=True)
class TextDialect:
    """An answer as OpenAI's text completions."""

    request: TextRequest
    answer: Answer
    echoes: list[str]
    """What comes before the text of each choice."""

    async def stream(self, events: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[str]:
        for index, echo in enumerate(self.echoes):
            if echo:
                yield self.chunk(index, echo)
        async for index, event in events:
            if isinstance(event, Finish):
                yield self.chunk(index, "", event)
            else:
                yield self.chunk(index, getattr(event.shown, "text", ""), tokens=event.tokens)
        if self.request.include_usage:
            yield self.event(self.head() | {"choices": [], "usage": self.answer.usage()})

    def failed(self, error: ApiError) -> str:
        return f"data: {encode(error.body())}\n\n"

    end = "data: [DONE]\n\n"

    async def collect(self, events: AsyncIterator[tuple[int, Event]]) -> dict[str, Any]:
        """The whole answer as one body."""
        gathered = [Gathered() for _ in range(self.answer.n_choices)]
        async for index, event in events:
            gathered[index].add(event)
        choices = [
            self.choice(index, self.echoes[index] + one.content, one.finish, tuple(one.tokens))
            for index, one in enumerate(gathered)
        ]
        return self.head() | {"choices": choices, "usage": self.answer.usage()}

    def chunk(self, index: int, text: str, finish: Finish | None = None, tokens: tuple[Token, ...] = ()) -> str:
        return self.event(self.head() | {"choices": [self.choice(index, text, finish, tokens)]})

    def event(self, chunk: dict[str, Any]) -> str:
        options = self.request.stream_options
        if options is not None and "usage" not in chunk and (options.include_usage or options.continuous_usage_stats):
            chunk = chunk | {"usage": self.answer.usage() if options.continuous_usage_stats else None}
        return f"data: {encode(chunk)}\n\n"

    def head(self) -> dict[str, Any]:
        answer = self.answer
        return {"id": answer.id, "object": "text_completion", "created": answer.created, "model": answer.model}

    def choice(self, index: int, text: str, finish: Finish | None, tokens: tuple[Token, ...]) -> dict[str, Any]:
        reason = None if finish is None else finish.reason
        return {"index": index, "text": text, "logprobs": self.logprobs(tokens), "finish_reason": reason}

    def logprobs(self, tokens: tuple[Token, ...]) -> dict[str, Any] | None:
        """OpenAI's older form: lists side by side."""
        if self.request.logprobs is None:
            return None
        spell = lambda token_id: self.answer.ask.token_bytes(token_id).decode(errors="replace")  # noqa: E731
        return {
            "tokens": [spell(token.token_id) for token in tokens],
            "token_logprobs": [max(token.model_logprob or 0.0, FLOOR) for token in tokens],
            "top_logprobs": [{spell(one): max(logprob, FLOOR) for one, logprob in token.top} for token in tokens],
        }
