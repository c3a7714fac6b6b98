"""An answer as OpenAI's chat completions, whole or in chunks, with DeepSeek's thought in a field of its own.

Every delta has `content`, and where thoughts are sent `reasoning_content` and its other name `reasoning` (or the one
that `--reasoning-field` chose); `content` is a string whenever there is no thought in the delta: DeepSeek's own example
reads `delta.reasoning_content` and else adds `delta.content` to the answer. No chunk holds both. Without thinking the
two fields are absent.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from sobre.engine.request import Token
from sobre.serve.answer import Answer, Event, Finish, Piece
from sobre.serve.chat_schema import ChatRequest
from sobre.serve.errors import ApiError
from sobre.serve.events import Delta
from sobre.serve.guard import encode
from sobre.tokenizer.tool_calls import CallArguments, CallStart

FLOOR = -9999.0
"""Sent for a log-probability of minus infinity, which JSON has no name for."""


@dataclass(frozen=True)
class ChatDialect:
    """How one request wants its answer."""

    chat: ChatRequest
    answer: Answer
    names: tuple[str, ...] = ("reasoning_content", "reasoning")
    """Fields that a thought is sent in."""

    @property
    def thoughts(self) -> bool:
        """Whether thoughts are sent."""
        return self.chat.thinking.on and self.chat.include_reasoning

    async def stream(self, events: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[str]:
        """The events of a stream but for [DONE]."""
        for index in range(self.answer.n_choices):
            yield self.chunk(index, self.delta("content", "", role="assistant") | self.thought(""))
        async for index, event in events:
            if isinstance(event, Finish):
                yield self.chunk(index, self.delta("content", ""), finish=event, experts=self.experts(index, event))
            elif not self.is_hidden(event):
                yield self.chunk(index, self.shown(event), logprobs=self.logprobs(event.tokens))
        if self.chat.include_usage:
            yield self.event(self.head("chat.completion.chunk") | {"choices": [], "usage": self.answer.usage()})

    def failed(self, error: ApiError) -> str:
        """What a client that already reads is told."""
        return f"data: {encode(error.body())}\n\n"

    end = "data: [DONE]\n\n"

    async def collect(self, events: AsyncIterator[tuple[int, Event]]) -> dict[str, Any]:
        """The whole answer as one body."""
        choices = [Gathered() for _ in range(self.answer.n_choices)]
        async for index, event in events:
            choices[index].add(event)
        return self.head("chat.completion") | {
            "choices": [self.choice(index, gathered) for index, gathered in enumerate(choices)],
            "usage": self.answer.usage(),
        }

    def choice(self, index: int, gathered: "Gathered") -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": gathered.content, "refusal": None}
        if self.thoughts:
            message |= self.thought(gathered.reasoning)
        if gathered.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
                for call, arguments in gathered.calls
            ]
        logprobs = self.logprobs(tuple(gathered.tokens)) or ({"content": [], "refusal": None} if self.listed else None)
        experts = self.experts(index, gathered.finish)
        return {"index": index, "message": message, "logprobs": logprobs} | finished(gathered.finish) | experts

    def is_hidden(self, piece: Piece) -> bool:
        return isinstance(piece.shown, Delta) and piece.shown.kind == "reasoning" and not self.thoughts

    def shown(self, piece: Piece) -> dict[str, Any]:
        """The delta of one piece."""
        shown = piece.shown
        if isinstance(shown, Delta):
            return self.delta(shown.kind, shown.text)
        if isinstance(shown, CallStart):
            function = {"name": shown.name, "arguments": ""}
            call = {"index": shown.index, "id": shown.id, "type": "function", "function": function}
        else:
            call = {"index": shown.index, "function": {"arguments": shown.text}}
        return self.delta("content", "") | {"tool_calls": [call]}

    def delta(self, kind: str, text: str, **fields: Any) -> dict[str, Any]:
        if kind == "reasoning":
            return fields | {"content": None} | self.thought(text)
        return fields | {"content": text} | self.thought(None)

    def thought(self, text: str | None) -> dict[str, Any]:
        return dict.fromkeys(self.names, text) if self.thoughts else {}

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        finish: Finish | None = None,
        logprobs: dict[str, Any] | None = None,
        experts: dict[str, Any] | None = None,
    ) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logprobs} | finished(finish) | (experts or {})
        return self.event(self.head("chat.completion.chunk") | {"choices": [choice]})

    def event(self, chunk: dict[str, Any]) -> str:
        options = self.chat.stream_options
        if options is not None and "usage" not in chunk and (options.include_usage or options.continuous_usage_stats):
            chunk = chunk | {"usage": self.answer.usage() if options.continuous_usage_stats else None}
        return f"data: {encode(chunk)}\n\n"

    def head(self, kind: str) -> dict[str, Any]:
        answer = self.answer
        return {"id": answer.id, "object": kind, "created": answer.created, "model": answer.model}

    def experts(self, index: int, finish: Finish | None) -> dict[str, Any]:
        """With `return_experts`, for the first choice: the experts that each token of the answer visited, by layer."""
        if not self.answer.ask.experts or index or finish is None or finish.last is None:
            return {}
        routes_LTA = finish.last.routes_LTA
        if routes_LTA is None:
            return {}
        answer_LTA = routes_LTA[:, self.answer.n_prompt :].tolist()
        spell = self.answer.ask.token_bytes
        tokens = [spell(token).decode(errors="replace") for token in self.answer.written[:-1]]
        layers = [{"layer": layer, "experts": experts} for layer, experts in enumerate(answer_LTA)]
        return {"experts": {"n_experts": self.answer.ask.n_experts, "tokens": tokens, "layers": layers}}

    @property
    def listed(self) -> bool:
        return self.answer.ask.n_logprobs is not None

    def logprobs(self, tokens: tuple[Token, ...]) -> dict[str, Any] | None:
        """One entry per token of the answer's text; the thought has none."""
        if not tokens:
            return None
        return {"content": [self.entry(token) for token in tokens], "refusal": None}

    def entry(self, token: Token) -> dict[str, Any]:
        assert token.model_logprob is not None, "asked for with n_logprobs"
        top = [self.named(token_id, logprob) for token_id, logprob in token.top]
        return self.named(token.token_id, token.model_logprob) | {"top_logprobs": top}

    def named(self, token_id: int, logprob: float) -> dict[str, Any]:
        spelt = self.answer.ask.token_bytes(token_id)
        return {"token": spelt.decode(errors="replace"), "logprob": max(logprob, FLOOR), "bytes": list(spelt)}


def finished(finish: Finish | None) -> dict[str, Any]:
    """`finish_reason`, and what exactly ended the choice where OpenAI's word leaves that open."""
    if finish is None:
        return {"finish_reason": None}
    return {"finish_reason": finish.reason} | ({} if finish.detail is None else {"stop_reason": finish.detail})


class Gathered:
    """One choice, piece by piece."""

    def __init__(self) -> None:
        self.reasoning = self.content = ""
        self.calls: list[tuple[CallStart, str]] = []
        self.tokens: list[Token] = []
        self.finish: Finish | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, Finish):
            self.finish = event
            return
        self.tokens += event.tokens
        shown = event.shown
        if isinstance(shown, CallStart):
            self.calls.append((shown, ""))
        elif isinstance(shown, CallArguments):
            call, arguments = self.calls[shown.index]
            self.calls[shown.index] = call, arguments + shown.text
        elif shown.kind == "reasoning":
            self.reasoning += shown.text
        else:
            self.content += shown.text
