"""Another engine behind the same API: a process that speaks OpenAI's chat API, such as vLLM or SGLang.

It is never imported: requests are checked here, sent on over HTTP, and what comes back is read as events, so that the
page, the dialects, keys and budgets are the same. Either name of the thought is understood, errors of either shape.
What an answer costs is its share of the wall time: the time it took, split among the answers that ran meanwhile.

Not offered through another engine: text completions, log-probabilities, "answer now", the experts of a token.
"""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from sobre.serve.answer import Answer, Event, Finish, Piece
from sobre.serve.ask import Ask
from sobre.serve.chat_schema import ChatRequest, NamedTool, Sampling
from sobre.serve.errors import ApiError, invalid
from sobre.serve.events import Delta
from sobre.tokenizer.tool_calls import CallArguments, CallStart

RETRY = {"retry-after": "5"}
KNOWN = ("sobre", "vllm", "sglang")
"""`owned_by` in /v1/models of engines that take `cache_salt` and follow regular expressions."""


class UpstreamWriter:
    """Checks what the other engine cannot do, and makes the body that it is sent.

    Each key's prompts get a salt of their own, so that the engine behind finds no key's prefixes for another: the HMAC
    of what our own engine would keep them apart by, under `secret`.
    """

    def __init__(self, model: str, secret: bytes) -> None:
        self.model, self.secret = model, secret

    def chat(self, chat: ChatRequest, ask_id: str, cache_key: str = "") -> Ask:
        if chat.logprobs or chat.return_experts:
            param = "logprobs" if chat.logprobs else "return_experts"
            raise invalid(f"'{param}' is not offered through another engine.", param, "unsupported")
        body = upstream_body(chat, self.model)
        if cache_key:
            body["cache_salt"] = hmac.digest(self.secret, cache_key.encode(), "sha256").hex()
        return Ask(ask_id, [], [], chat.n, 0, lambda token_id: b"", body=body, must_salt=chat.cache_salt is not None)

    def text(self, *_: Any, **__: Any) -> Ask:
        raise invalid("Text completions are not offered through another engine; use /v1/chat/completions.", None)

    def render(self, *_: Any) -> tuple[int, ...]:
        raise invalid("Tokens are not counted through another engine.", None, "unsupported")

    def prompts(self, *_: Any) -> list[tuple[int, ...]]:
        return []

    def spell(self, ids: Sequence[int]) -> str:
        raise AssertionError("there are no prompts")


def upstream_body(chat: ChatRequest, model: str) -> dict[str, Any]:
    """A checked request as vLLM, SGLang and we ourselves read it; what was not asked for is left to the engine."""
    body: dict[str, Any] = {"model": model, "messages": [message.plain() for message in chat.messages]}
    defaults = Sampling()
    for name in Sampling.model_fields:
        value = getattr(chat, name)
        if value != getattr(defaults, name):
            body[name] = {str(key): bias for key, bias in value.items()} if name == "logit_bias" else value
    if chat.answer_limit is not None:
        body["max_tokens"] = chat.answer_limit
    if chat.tools:
        body["tools"] = [tool.plain() for tool in chat.tools]
        choice = chat.tool_choice
        body["tool_choice"] = choice.model_dump() if isinstance(choice, NamedTool) else choice
        if not chat.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    form = chat.response_format
    if form.json_schema is not None:
        schema = {"name": form.json_schema.name, "schema": form.json_schema.json_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif form.type == "json_object":
        body["response_format"] = {"type": form.type}
    pattern, _ = chat.pattern
    if pattern:
        body["structured_outputs"] = {"regex": pattern}
    if chat.continues:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    body["chat_template_kwargs"] = {"thinking": chat.thinking.on, "enable_thinking": chat.thinking.on}
    if chat.thinking.on and chat.thinking.budget is not None:
        body["thinking_token_budget"] = chat.thinking.budget
    if chat.thinking.on and chat.thinking.effort is not None:
        body["reasoning_effort"] = chat.thinking.effort
    return body | {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(eq=False)
class UpstreamStream:
    """The other engine's answer, line by line; closing the events closes the connection."""

    upstream: "Upstream"
    body: dict[str, Any]
    must_salt: bool
    """The client itself asked for a salt: an engine that takes none cannot answer."""
    running: "set[UpstreamStream]"
    """All that are open, this one among them."""
    error: Exception | None = None

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Every event up to [DONE]; an ApiError for whatever goes wrong."""
        try:
            body = await self._as_read()
            async with self.upstream.client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    raise refused(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if self.error is not None:
                        raise self.error
                    if not line.startswith("data:"):
                        continue
                    data = line.removeprefix("data:").strip()
                    if data == "[DONE]":
                        return
                    yield parsed(data)
        except httpx2.TimeoutException:
            raise ApiError(504, "The engine behind this server says nothing.", code="engine_timeout") from None
        except httpx2.HTTPError as error:
            said = f"The engine behind this server is not reached ({type(error).__name__})."
            raise ApiError(503, said, code="engine_stopped", headers=RETRY) from None
        raise ApiError(502, "The engine behind this server ended before the answer did.", code="engine_error")

    async def _as_read(self) -> dict[str, Any]:
        """The body in this engine's own fields: a pattern under its name, no salt where it knows none."""
        body = dict(self.body)
        if not body.keys() & {"structured_outputs", "cache_salt"}:
            return body
        owner = await self.upstream.owner()
        if "structured_outputs" in body:
            if owner not in KNOWN:
                raise invalid("The engine behind this server is not known to follow patterns.", None, "unsupported")
            if owner == "sglang":
                body["regex"] = body.pop("structured_outputs")["regex"]
        if "cache_salt" in body and owner not in KNOWN:
            if self.must_salt:
                raise invalid("The engine behind this server takes no 'cache_salt'.", "cache_salt", "unsupported")
            del body["cache_salt"]
        return body

    def close(self) -> None:
        self.running.discard(self)

    def end_thoughts(self) -> bool:
        return False


def parsed(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict) or not isinstance(chunk.get("choices", []), list):
        raise ApiError(502, "The engine behind this server sent what is no event.", code="engine_error")
    if chunk.get("error") is not None:
        raise refused(500, data.encode())
    return chunk


def refused(status: int, content: bytes) -> ApiError:
    """The other engine's error in our words: its own message where the request is to blame."""
    try:
        body = json.loads(content)
        error = body.get("error", body)
        said = str(error["message"] if isinstance(error, dict) else error)[:500]
    except (ValueError, KeyError, TypeError, AttributeError):
        said = f"status {status}"
    if status in (400, 422):
        return invalid(said, None)
    if status in (429, 503):
        return ApiError(
            status, f"The engine behind this server is busy: {said}", code="too_many_requests", headers=RETRY
        )
    return ApiError(502, f"The engine behind this server failed: {said}", code="engine_error")


@dataclass
class UpstreamAnswer(Answer):
    """An answer that another engine writes."""

    counts: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "cached": 0, "written": 0, "thought": 0})

    async def events(self, stream: Any) -> AsyncIterator[tuple[int, Event]]:
        calls: dict[int, int] = {}  # of each choice, how many calls have begun
        last = time.perf_counter()
        chunks = stream.chunks()
        try:
            while True:
                try:
                    async with asyncio.timeout_at(self.deadline):
                        chunk = await anext(chunks)
                except StopAsyncIteration:
                    break
                except TimeoutError:
                    for index in set(range(self.n_choices)) - set(self.reasons):
                        yield index, self._finish(index, Finish("length", "deadline"))
                    return
                now = time.perf_counter()
                self.seconds += (now - last) / max(1, len(stream.running))
                last = now
                if self.first_token_s is None:
                    self.first_token_s = now - self.began
                self._take(chunk.get("usage"))
                for choice in chunk.get("choices", []):
                    for event in self._read(choice, calls):
                        yield int(choice["index"]), event
            if len(self.reasons) < self.n_choices:
                raise ApiError(502, "The engine behind this server left an answer open.", code="engine_error")
        finally:
            await chunks.aclose()
            stream.close()

    def _take(self, usage: dict[str, Any] | None) -> None:
        if usage:
            details = usage.get("completion_tokens_details") or {}
            self.counts = {
                "prompt": usage.get("prompt_tokens", 0),
                "cached": (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
                "written": usage.get("completion_tokens", 0),
                "thought": details.get("reasoning_tokens") or usage.get("reasoning_tokens") or 0,
            }
            self.n_cached = self.counts["cached"]

    def _read(self, choice: dict[str, Any], calls: dict[int, int]) -> list[Event]:
        """The events of one choice of one chunk."""
        delta, index = choice.get("delta") or {}, choice["index"]
        found: list[Event] = []
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            found.append(Piece(Delta("reasoning", thought)))
        if text := delta.get("content"):
            found.append(Piece(Delta("content", text)))
        for call in delta.get("tool_calls") or []:
            function = call.get("function") or {}
            if call.get("id"):
                calls[index] = call.get("index", 0) + 1
                found.append(Piece(CallStart(call.get("index", 0), call["id"], function.get("name") or "")))
            if function.get("arguments"):
                found.append(Piece(CallArguments(call.get("index", 0), function["arguments"])))
        if reason := choice.get("finish_reason"):
            known = reason if reason in ("stop", "length", "tool_calls") else "stop"
            detail = choice.get("stop_reason") if isinstance(choice.get("stop_reason"), str) else None
            found.append(self._finish(index, Finish(known, detail or (reason if reason != known else None))))
        return found

    def _finish(self, index: int, finish: Finish) -> Finish:
        self.reasons[index] = finish.reason
        return finish

    @property
    def n_choices(self) -> int:
        return self.ask.n_per_prompt

    @property
    def n_prompt(self) -> int:
        return self.counts["prompt"]

    @property
    def n_tokens(self) -> int:
        return self.counts["written"]

    @property
    def n_reasoning(self) -> int:
        return self.counts["thought"]


def owner_of(content: bytes) -> str:
    """What an engine calls itself in its list of models; "" where it does not say."""
    try:
        return str(json.loads(content)["data"][0]["owned_by"])
    except (ValueError, KeyError, IndexError, TypeError):
        return ""


class Upstream:
    """The address of one other engine, and what it is answering."""

    def __init__(self, url: str, read_timeout_s: float) -> None:
        self._url, self._timeout = url.rstrip("/"), httpx2.Timeout(10.0, read=read_timeout_s, pool=None)
        self._client: httpx2.AsyncClient | None = None
        self._streams: set[UpstreamStream] = set()
        self._owner = ""

    @property
    def client(self) -> httpx2.AsyncClient:
        assert self._client is not None, "start() comes first"
        return self._client

    async def owner(self) -> str:
        """What this engine calls itself; asked until it answers, then known."""
        if not self._owner:
            response = await self.client.get("/v1/models")
            self._owner = owner_of(response.content) if response.status_code == 200 else ""
        return self._owner

    @property
    def n_open(self) -> int:
        return len(self._streams)

    def start(self) -> None:
        limits = httpx2.Limits(max_connections=None)
        self._client = httpx2.AsyncClient(base_url=self._url, timeout=self._timeout, limits=limits)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def submit(self, body: dict[str, Any], *, must_salt: bool) -> UpstreamStream:
        """Send a body on; its answer comes through the stream."""
        stream = UpstreamStream(self, body, must_salt, self._streams)
        self._streams.add(stream)
        return stream

    def fail_all(self, error: Exception) -> None:
        """End every answer with `error`, at its next event."""
        for stream in self._streams:
            stream.error = error
