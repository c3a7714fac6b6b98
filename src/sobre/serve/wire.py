"""Reading a request's body within bounds, writing server-sent events, and noticing that the client has left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from sobre.serve.answer import Event, as_api_error
from sobre.serve.errors import ApiError

T = TypeVar("T")
JSON_TYPES = ("application/json", "application/json;charset=utf-8", "application/json;charset=utf8")


async def read_json_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body, of a type that JSON comes as."""
    kind = request.headers.get("content-type", "").lower().replace(" ", "").replace('"', "")
    if kind not in JSON_TYPES or request.headers.get("content-encoding", "identity") != "identity":
        raise ApiError(415, "Send the body as plain 'Content-Type: application/json'.", code="unsupported_media_type")
    return await read_body(request, max_bytes, timeout_s)


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body; refuses too much and too slow, and never holds more than `max_bytes`."""
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
    except ClientDisconnect:
        raise ApiError(499, "The client left before its body had come.", code="client_left") from None
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


class ClientGone(Exception):
    """The client takes nothing any more."""


class EventStream(Response):
    """Server-sent events; when the client leaves, the source is cancelled, whatever it waits for.

    `release` is called at the end in every case, even when the source was never begun. A client that takes nothing for
    `write_timeout_s` is dropped.
    """

    def __init__(
        self,
        source: AsyncIterator[str],
        gone: Callable[[], None],
        release: Callable[[], None],
        *,
        write_timeout_s: float,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(media_type="text/event-stream", headers=headers)
        self.source, self.gone, self.release, self.write_timeout_s = source, gone, release, write_timeout_s
        del self.headers["content-length"]
        self.headers.update({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send(send), self.gone)
        except ClientGone:
            pass  # an answer without its end: uvicorn closes the connection
        finally:
            self.release()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self.source) as source:  # type: ignore[type-var]
            async for event in source:
                try:
                    async with asyncio.timeout(self.write_timeout_s):
                        await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
                except TimeoutError:
                    self.gone()
                    raise ClientGone from None
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Dialect(Protocol):
    """How an answer is written: OpenAI's chat, text and responses, Anthropic's messages."""

    end: str
    """What closes a stream in every case."""

    def stream(self, events: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[str]: ...
    async def collect(self, events: AsyncIterator[tuple[int, Event]]) -> dict[str, Any]: ...
    def failed(self, error: ApiError) -> str: ...


async def written(dialect: Dialect, events: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[str]:
    """The answer as server-sent events; an error becomes the dialect's own event, and its end always comes last."""
    try:
        async with aclosing(events), aclosing(dialect.stream(events)) as source:  # type: ignore[type-var]
            async for event in source:
                yield event
    except Exception as error:
        yield dialect.failed(as_api_error(error))
    if dialect.end:
        yield dialect.end


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


async def collected(dialect: Dialect, events: AsyncIterator[tuple[int, Event]]) -> dict[str, Any]:
    """The whole answer as one body."""
    try:
        async with aclosing(events):  # type: ignore[type-var]
            return await dialect.collect(events)
    except Exception as error:
        raise as_api_error(error) from error
