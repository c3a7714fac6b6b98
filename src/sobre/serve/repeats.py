"""A request that is sent twice under one Idempotency-Key is answered once: the second gets the first one's answer.

OpenAI's clients send such a key with every request and repeat it when they try again. An answer is kept for `KEEP_S`,
an error is not kept at all; a request whose clients have all left is stopped. Streams are not shared.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sobre.serve.errors import ApiError

T = TypeVar("T")

KEEP_S = 600.0
MAX_KEPT = 256
"""Answers kept; the oldest goes first."""
MAX_KEY_CHARS = 255


@dataclass
class Once(Generic[T]):
    """One request, and the clients that wait for its answer."""

    body: bytes
    """Digest of what was asked."""
    task: "asyncio.Task[T]"
    began: float
    n_waiting: int = 0


class Repeats(Generic[T]):
    """Requests by whose they are and their key."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[tuple[str, ...], Once[T]] = OrderedDict()

    async def once(self, key: tuple[str, ...], body: bytes, work: Callable[[], Awaitable[T]]) -> T:
        """The answer under this key: that of `work`, unless it is there or on its way."""
        self._forget_old()
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = Once(body, asyncio.ensure_future(done(work)), self._clock())
        elif found.body != body:
            said = "This Idempotency-Key was used for another request; send a new one."
            raise ApiError(409, said, code="idempotency_key_reused", param="idempotency-key")
        found.n_waiting += 1
        try:
            return await asyncio.shield(found.task)
        except Exception:
            self._drop(key, found)
            raise
        finally:
            found.n_waiting -= 1
            if not found.n_waiting and not found.task.done():
                found.task.cancel()
                self._drop(key, found)

    def _drop(self, key: tuple[str, ...], once: Once[T]) -> None:
        if self._kept.get(key) is once:
            del self._kept[key]

    def _forget_old(self) -> None:
        now = self._clock()
        over = [key for key, one in self._kept.items() if one.task.done() and now - one.began > KEEP_S]
        finished = [key for key, one in self._kept.items() if one.task.done()]
        for key in {*over, *finished[: max(0, len(self._kept) - MAX_KEPT + 1)]}:
            del self._kept[key]


async def done(work: Callable[[], Awaitable[Any]]) -> Any:
    return await work()
