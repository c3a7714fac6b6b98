"""Reading a request's body within bounds, writing server-sent events, and noticing that the client has left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from sobre.serve.bridge import Stream
from sobre.serve.completion import Completion, Finish, as_api_error
from sobre.serve.errors import ApiError
from sobre.serve.guard import encode

T = TypeVar("T")


async def read_json_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body; refuses other types, too much, and too slow, and never holds more than `max_bytes`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" or request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "Send the body as plain 'Content-Type: application/json'.", code="unsupported_media_type")
    too_large = ApiError(413, f"The body is larger than {max_bytes:,} bytes.", code="request_too_large")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and len(declared) <= 20 and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {timeout_s:g} s.", code="request_timeout") from None
    return bytes(body)


async def unless_gone(receive: Receive, work: Awaitable[T], gone: Callable[[], None]) -> T | None:
    """The result of `work`, or None when the client leaves first: then `work` is cancelled and `gone` called."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        gone()
        return None
    finally:
        for task in (working, watching):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def disconnected(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events; when the client leaves, the source is cancelled, whatever it waits for.

    `release` is called at the end in every case, even when the source was never begun.
    """

    def __init__(self, source: AsyncIterator[str], gone: Callable[[], None], release: Callable[[], None]) -> None:
        super().__init__(media_type="text/event-stream")
        self.source, self.gone, self.release = source, gone, release
        del self.headers["content-length"]
        self.headers.update({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send(send), self.gone)
        finally:
            self.release()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self.source) as source:  # type: ignore[type-var]
            async for event in source:
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def stream_events(completion: Completion, stream: Stream, *, include_usage: bool) -> AsyncIterator[str]:
    """The answer as server-sent events; an error ends it with an `error` event, and [DONE] always comes last.

    Every delta has both keys, `content` a string whenever there is no reasoning in it: DeepSeek's own example reads
    `delta.reasoning_content` and else adds `delta.content` to the answer.
    """

    def event(chunk: dict[str, Any]) -> str:
        return f"data: {encode(chunk | {'usage': None} if include_usage and 'usage' not in chunk else chunk)}\n\n"

    for index in range(len(completion.readers)):
        yield event(completion.chunk(index, {"role": "assistant", "content": "", "reasoning_content": ""}))
    try:
        async with aclosing(completion.events(stream)) as events:  # type: ignore[type-var]
            async for index, item in events:
                if isinstance(item, Finish):
                    yield event(completion.chunk(index, {"content": "", "reasoning_content": None}, item.reason))
                elif item.kind == "reasoning":
                    yield event(completion.chunk(index, {"content": None, "reasoning_content": item.text}))
                else:
                    yield event(completion.chunk(index, {"content": item.text, "reasoning_content": None}))
        if include_usage:
            yield event(completion.usage_chunk())
    except Exception as error:
        yield f"data: {encode(as_api_error(error).body())}\n\n"
    yield "data: [DONE]\n\n"


async def with_keep_alive(events: AsyncIterator[str], every_s: float) -> AsyncIterator[str]:
    """`events`, with a comment whenever none came for `every_s` seconds (queued, or reading a long prompt)."""
    waiting: asyncio.Future[str] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(events))  # type: ignore[arg-type]
            done, _ = await asyncio.wait({waiting}, timeout=every_s)
            if not done:
                yield ": keep-alive\n\n"
                continue
            finished, waiting = waiting, None
            try:
                yield finished.result()
            except StopAsyncIteration:
                return
    finally:
        if waiting is not None:
            waiting.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                await waiting
        await events.aclose()  # type: ignore[attr-defined]


async def collect(completion: Completion, stream: Stream) -> dict[str, Any]:
    """The whole answer as one body."""
    texts = [{"reasoning": "", "content": ""} for _ in completion.readers]
    reasons = [""] * len(texts)
    try:
        async with aclosing(completion.events(stream)) as events:  # type: ignore[type-var]
            async for index, item in events:
                if isinstance(item, Finish):
                    reasons[index] = item.reason
                else:
                    texts[index][item.kind] += item.text
    except Exception as error:
        raise as_api_error(error) from error
    return completion.body(texts, reasons)
