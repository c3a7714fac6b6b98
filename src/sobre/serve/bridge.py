"""The engine's thread and asyncio, and nothing else between them.

One thread owns the engine: requests and aborts reach it through a list of commands, tokens come back in one
`call_soon_threadsafe` per step. What goes wrong in that thread reaches every waiting request as an exception: a request
that the engine refuses fails alone; a step that raises fails those that the engine lays it at (named in the error, or
the request that began last), its place is freed, and the others go on with all that they have; a fault that stays so
ends one after the other. When a place cannot be freed, or the engine has nothing to do and yet not all its memory back
(it is asked each time that its work ends), the bridge is dead, says so to everybody, and `failure` is set.

Shares of the machine: the seconds of a step are split evenly among the requests that received a token from it, and a
step that brought no token (a long prompt) is added to the next. So the shares add up to the time the engine worked.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from sobre.engine.engine import Pooling
from sobre.engine.request import Request, Token
from sobre.errors import EngineError
from sobre.serve.guard import log, where

if TYPE_CHECKING:
    from torch import Tensor


class EngineLike(Protocol):
    """What the bridge asks of an engine."""

    @property
    def has_work(self) -> bool: ...
    @property
    def n_blocks_held(self) -> int: ...
    @property
    def drafts(self) -> tuple[int, int]: ...
    @property
    def suspects(self) -> Sequence[str]: ...
    def add(self, request: Request) -> None: ...
    def abort(self, request_id: str) -> object: ...
    def end_thought(self, request_id: str) -> bool: ...
    def warm(self, prompt_ids: Sequence[int], cache_key: str) -> None: ...
    def embed(self, prompts: Sequence[Sequence[int]], pooling: Pooling) -> "Tensor": ...
    def check_integrity(self) -> None: ...
    def step(self) -> list[Token]: ...


@dataclass(frozen=True)
class Part:
    """One token of one of the requests of a stream."""

    index: int
    token: Token
    seconds: float
    """Share of the machine since this request's last token."""

    @property
    def finish_reason(self) -> str | None:
        return self.token.finish_reason


class Stream:
    """The tokens of one or more requests of the engine, in the order they come, for one asyncio consumer."""

    def __init__(self, bridge: "Bridge", requests: list[Request]) -> None:
        self._bridge = bridge
        self._ids = {request.id: index for index, request in enumerate(requests)}
        self._open = set(self._ids)
        self._queue: asyncio.Queue[Part | Exception] = asyncio.Queue()

    async def parts(self) -> AsyncIterator[Part]:
        """Every token until all requests have finished; raises what stopped them."""
        while self._open:
            item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            request_id = next(key for key, index in self._ids.items() if index == item.index)
            if request_id not in self._open:
                continue  # already on its way when the request was aborted
            if item.finish_reason is not None:
                self._open.discard(request_id)
            yield item

    def abort(self, index: int) -> None:
        """Stop one request: its text is complete."""
        for request_id, at in self._ids.items():
            if at == index and request_id in self._open:
                self._open.discard(request_id)
                self._bridge.abort(request_id)

    def close(self) -> None:
        """Stop whatever still runs; to be called whether or not the stream was read to its end."""
        for request_id in self._open:
            self._bridge.abort(request_id)
        self._open.clear()
        self._bridge.forget(self)

    def put(self, request_id: str, token: Token, seconds: float) -> None:
        """In the event loop: hand over a token."""
        self._queue.put_nowait(Part(self._ids[request_id], token, seconds))

    def end_thoughts(self) -> bool:
        """Close the thoughts that are open now ("answer now"); False when nothing of this stream runs any more."""
        for request_id in self._open:
            self._bridge.end_thought(request_id)
        return bool(self._open)

    def fail(self, error: Exception) -> None:
        """In the event loop: the reader of this stream gets `error`."""
        self._queue.put_nowait(error)


class Bridge:
    """Owns the thread that owns the engine. Every public method is for the event loop's thread."""

    def __init__(self, engine: EngineLike) -> None:
        self._engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = threading.Condition()
        self._commands: list[Callable[[], object]] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._streams: set[Stream] = set()
        self._embedding: set[asyncio.Future[Any]] = set()
        self.failure: BaseException | None = None
        """Why the engine cannot go on at all; None while it can."""
        self._running: dict[str, Stream] = {}  # these belong to the engine's thread
        self._shares: dict[str, float] = {}
        self._carried_s = 0.0
        self._unchecked = False

    @property
    def n_open(self) -> int:
        """Requests that run or wait."""
        return sum(len(stream._open) for stream in self._streams)

    @property
    def n_blocks_held(self) -> int:
        """Blocks of the cache that running requests hold."""
        return self._engine.n_blocks_held

    @property
    def drafts(self) -> tuple[int, int]:
        """Tokens that the engine guessed ahead, and how many were right."""
        return self._engine.drafts

    def start(self) -> None:
        """Start the thread; to be called inside the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Stop the thread; whoever still waits is told."""
        self.fail_all(EngineError("the server is stopping"))
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def submit(self, requests: Iterable[Request]) -> Stream:
        """Hand requests to the engine; their tokens come through the stream."""
        if self.failure is not None:
            raise EngineError(f"the engine has stopped: {type(self.failure).__name__}")
        stream = Stream(self, list(requests))
        self._streams.add(stream)
        for request in requests:
            self._command(partial(self._add, request, stream))
        return stream

    def abort(self, request_id: str) -> None:
        """Free the request's place in the engine; unknown or finished ids are fine."""
        self._command(partial(self._abort, request_id))

    def end_thought(self, request_id: str) -> None:
        """Close the request's thought with its next token; requests without an open one go on as they are."""
        self._command(partial(self._engine.end_thought, request_id))

    def warm(self, prompt_ids: Sequence[int], cache_key: str) -> None:
        """Have a prompt that is likely to come computed in idle time."""
        self._command(partial(self._engine.warm, prompt_ids, cache_key))

    async def embed(self, prompts: Sequence[Sequence[int]], pooling: Pooling) -> tuple["Tensor", float]:
        """Vectors of these prompts, and the seconds that they took, between two steps of the engine."""
        if self.failure is not None:
            raise EngineError(f"the engine has stopped: {type(self.failure).__name__}")
        loop = asyncio.get_running_loop()
        made: asyncio.Future[tuple[Tensor, float]] = loop.create_future()
        self._embedding.add(made)
        self._command(partial(self._embed, prompts, pooling, made))
        try:
            return await made
        finally:
            self._embedding.discard(made)

    def forget(self, stream: Stream) -> None:
        """The stream's reader has left."""
        self._streams.discard(stream)

    def fail_all(self, error: Exception) -> None:
        """End every open stream with `error`."""
        for stream in self._streams:
            stream.fail(error)
        for made in self._embedding:
            _settle(made, error)

    def _command(self, command: Callable[[], object]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    # ---- the engine's thread ----

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._commands or self._closing or (self.failure is None and self._engine.has_work)):
                    self._wake.wait()
                if self._closing:
                    return
                commands, self._commands = self._commands, []
            try:
                for command in commands:
                    command()
                if self.failure is None:
                    self._work()
            except Exception as error:  # a place could not be freed, or is held by nobody
                self.failure = error
                self._running.clear()
                self._shares.clear()
                log.error("the engine has stopped: %s", where(error))
                self._call(self.fail_all, error)

    def _work(self) -> None:
        """A step where there is work; where there is none any more, a look at whether every place is free again."""
        if self._engine.has_work:
            self._unchecked = True
            self._step()
        if self._unchecked and not self._engine.has_work:
            self._unchecked = False
            self._engine.check_integrity()

    def _add(self, request: Request, stream: Stream) -> None:
        if self.failure is not None:
            self._call(stream.fail, self.failure)
            return
        try:
            self._engine.add(request)
        except Exception as error:  # refused: this request's own affair
            self._call(stream.fail, error)
            return
        self._running[request.id], self._shares[request.id] = stream, 0.0

    def _embed(self, prompts: Sequence[Sequence[int]], pooling: Pooling, made: "asyncio.Future[Any]") -> None:
        if made.done():  # its client has left
            return
        started = perf_counter()
        try:
            found: object = (self._engine.embed(prompts, pooling), perf_counter() - started)
        except Exception as error:
            found = error
        self._call(_settle, made, found)

    def _abort(self, request_id: str) -> None:
        if self._running.pop(request_id, None) is not None:
            self._shares.pop(request_id)
            self._engine.abort(request_id)

    def _step(self) -> None:
        started = perf_counter()
        try:
            tokens = self._engine.step()
        except Exception as error:
            failed = [request_id for request_id in self._engine.suspects if request_id in self._running]
            for request_id in failed or list(self._running):
                self._call(self._running.pop(request_id).fail, error)
                self._shares.pop(request_id)
                self._engine.abort(request_id)
            return
        self._carried_s = self._carried_s + perf_counter() - started if self._running else 0.0  # warming costs nobody
        tokens = [token for token in tokens if token.request_id in self._running]
        if not tokens:
            return
        share = self._carried_s / len(tokens)
        self._carried_s = 0.0
        for token in tokens:
            self._shares[token.request_id] += share
        self._deliver(tokens)

    def _deliver(self, tokens: list[Token]) -> None:
        found = []
        for token in tokens:
            stream = self._running.get(token.request_id)
            if stream is not None:
                found.append((stream, token, self._shares[token.request_id]))
                self._shares[token.request_id] = 0.0
            if token.finish_reason is not None:
                self._running.pop(token.request_id, None)
                self._shares.pop(token.request_id, None)
        self._call(self._put, found)

    @staticmethod
    def _put(found: list[tuple[Stream, Token, float]]) -> None:
        for stream, token, seconds in found:
            stream.put(token.request_id, token, seconds)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None, "start() comes first"
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)


def _settle(made: "asyncio.Future[Any]", found: object) -> None:
    """In the event loop: what was waited for is here, or why it will not come."""
    if made.done():
        return
    if isinstance(found, Exception):
        made.set_exception(found)
    else:
        made.set_result(found)
