"""Several engines that serve the same model, and which of them a conversation goes to.

A conversation stays with the replica that has its beginning in its prefix cache: the replicas are ranked by a hash of
their address and of the conversation's beginning (rendezvous hashing, Thaler and Ravishankar 1998), so that every
router ranks them alike, one that dies moves its own conversations and no other, and they return when it does. A replica
with far more answers open than its fellows is passed over (bounded loads, arXiv 1608.01350).

A replica that cannot be reached, is leaving or is full is passed over as long as the client has seen nothing; an answer
that has begun is not repeated, it ends with an error, and a request that an engine fails at is not tried on the next.
Every `CHECK_S` each replica is asked for GET /readyz.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from typing import Any

import httpx2

from sobre.errors import RunError
from sobre.serve.errors import ApiError
from sobre.serve.process import EngineProcess
from sobre.serve.upstream import Upstream, UpstreamStream

log = logging.getLogger("sobre.serve")

CHECK_S = 2.0
"""Between two looks at each replica."""
ELSEWHERE = (429, 503)
"""Errors of a replica before its first event that another one need not have: full, leaving, or not there."""
MAX_TRIES = 3
"""Replicas that one request is sent to: one that kills them does not reach all."""


def beginning(body: dict[str, Any]) -> bytes:
    """What all turns of a conversation share: the tools, and the messages up to the first of the user."""
    messages = body["messages"]
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), len(messages) - 1)
    return json.dumps([body.get("tools"), messages[: first + 1]], sort_keys=True).encode()


def ranked(urls: Iterable[str], key: bytes) -> list[str]:
    """The addresses in the order in which this conversation tries them."""
    return sorted(urls, key=lambda url: hashlib.sha256(url.encode() + b"\0" + key).digest())


def is_crowded(n_open: int, n_all: int, n_replicas: int) -> bool:
    """Whether a replica has far more than its share of the answers that are open."""
    return n_open > 2 + 1.5 * n_all / n_replicas


class Replicas:
    """One other engine or several; has what the bridge to our own engine has. `process`: the one that was started."""

    def __init__(self, urls: Sequence[str], read_timeout_s: float, process: EngineProcess | None = None) -> None:
        self._each = {url: Upstream(url, read_timeout_s) for url in urls}
        self._process = process
        self.alive = dict.fromkeys(urls, True)
        self._checking: asyncio.Task[None] | None = None

    @property
    def n_open(self) -> int:
        return sum(one.n_open for one in self._each.values())

    @property
    def failure(self) -> BaseException | None:
        """Set while no replica answers, and for good when the process that was started has ended."""
        if self._process is not None and self._process.code is not None:
            return RunError(f"the engine ended with exit code {self._process.code}")
        return None if any(self.alive.values()) else RunError("no replica answers")

    def start(self) -> None:
        for one in self._each.values():
            one.start()
        self._checking = asyncio.create_task(self._check())

    async def close(self) -> None:
        if self._checking is not None:
            self._checking.cancel()
            with suppress(asyncio.CancelledError):
                await self._checking
        for one in self._each.values():
            await one.close()

    def submit(self, body: dict[str, Any], *, must_salt: bool) -> "ReplicaStream":
        """Send a body to the replica that its conversation belongs to; its answer comes through the stream."""
        return ReplicaStream(self, body, must_salt, self.order(body))

    def order(self, body: dict[str, Any]) -> list[str]:
        """Where to try, in turn: those that are alive and not crowded, then the crowded, then the dead."""
        n_alive = max(1, sum(self.alive.values()))

        def last(url: str) -> tuple[bool, bool]:
            return not self.alive[url], is_crowded(self._each[url].n_open, self.n_open, n_alive)

        return sorted(ranked(self._each, beginning(body)), key=last)

    def begin(self, url: str, body: dict[str, Any], *, must_salt: bool) -> UpstreamStream:
        return self._each[url].submit(body, must_salt=must_salt)

    def mark(self, url: str, *, alive: bool) -> None:
        """Note what was seen of a replica."""
        if self.alive[url] != alive:
            gone = "does not answer; its chats move" if len(self._each) > 1 else "does not answer"
            log.warning("replica %s %s", url, "answers again" if alive else gone)
        self.alive[url] = alive

    def fail_all(self, error: Exception) -> None:
        """End every answer with `error`, at its next event."""
        for one in self._each.values():
            one.fail_all(error)

    async def _check(self) -> None:
        async with httpx2.AsyncClient(timeout=CHECK_S) as client:
            while self._process is None or self._process.code is None:
                await asyncio.gather(*(self._look(client, url) for url in self._each))
                await asyncio.sleep(CHECK_S)
        log.error("%s; nothing can be answered any more", self.failure)

    async def _look(self, client: httpx2.AsyncClient, url: str) -> None:
        try:
            status = (await client.get(f"{url.rstrip('/')}/readyz")).status_code
        except httpx2.HTTPError:
            status = 503
        self.mark(url, alive=status not in (502, 503, 504))  # 404: an engine without this route is there, too


class ReplicaStream:
    """An answer from the first replica that begins one."""

    def __init__(self, replicas: Replicas, body: dict[str, Any], must_salt: bool, order: list[str]) -> None:
        self._replicas, self._body, self._must_salt, self._order = replicas, body, must_salt, order
        self._stream = replicas.begin(order[0], body, must_salt=must_salt)

    @property
    def running(self) -> set[UpstreamStream]:
        """All answers that the replica of this one writes."""
        return self._stream.running

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Every event of the answer; an ApiError for whatever goes wrong."""
        for i, url in enumerate(self._order[:MAX_TRIES]):
            if i:
                self._stream.close()
                self._stream = self._replicas.begin(url, self._body, must_salt=self._must_salt)
            begun = False
            try:
                async for chunk in self._stream.chunks():
                    begun = True
                    yield chunk
                return
            except ApiError as error:
                if self._stream.error is not None:  # ended from here
                    raise
                if error.code == "engine_stopped":
                    self._replicas.mark(url, alive=False)
                if begun or error.status not in ELSEWHERE or i + 1 == min(MAX_TRIES, len(self._order)):
                    raise

    def close(self) -> None:
        self._stream.close()

    def end_thoughts(self) -> bool:
        return False
