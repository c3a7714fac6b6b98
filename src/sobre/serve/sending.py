"""How an answer leaves: whole or as it is written, once for an Idempotency-Key, and ended when its client leaves."""

import hashlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from sobre.serve.answer import Answer
from sobre.serve.ask import Ask
from sobre.serve.config import ServeConfig
from sobre.serve.errors import ApiError, invalid
from sobre.serve.repeats import MAX_KEY_CHARS, Repeats
from sobre.serve.service import Running, Service
from sobre.serve.wire import Dialect, EventStream, collected, read_json_body, unless_gone, with_keep_alive, written

MAX_TIMEOUT_S = 86_400.0
Whole = tuple[dict[str, Any], dict[str, str]]
"""Body and headers of an answer that leaves in one piece."""


@dataclass(frozen=True)
class Asked:
    """What every dialect that asks for text hands over."""

    n_choices: int
    make: Callable[[], Ask]
    """What the engine is asked; called once there is room for it."""
    dialect: Callable[[Answer], Dialect]
    stream: bool
    ignored: Sequence[str]
    """Fields of the request that have no effect here, named in a header."""


class Sender:
    """Reads requests and sends answers by the server's limits."""

    def __init__(self, cfg: ServeConfig) -> None:
        self._cfg = cfg
        self._repeats: Repeats[Whole] = Repeats()

    async def body_of(self, request: Request) -> bytes:
        """The JSON body, read within the limits of size and time."""
        body = await read_json_body(request, self._cfg.max_body_bytes, self._cfg.read_timeout_s)
        request.state.body_digest = hashlib.sha256(body).digest()
        return body

    async def answer(self, request: Request, service: Service, asked: Asked) -> Response:
        """Begin an answer and send it, whole or as it is written; a client that leaves ends it."""
        if asked.stream:
            return await self._streamed(request, service, asked)
        return await self.once(request, lambda: in_one_piece(request, service, asked))

    async def once(self, request: Request, whole: Callable[[], Coroutine[Any, Any, Whole]]) -> Response:
        """What `whole` makes, or what the same request made before under the same Idempotency-Key."""
        key = idempotency_key(request)
        place = (request.state.account.id, request.url.path, key)
        work = self._repeats.once(place, request.state.body_digest, whole) if key else whole()
        found = await unless_gone(request.receive, work, lambda: request.state.note.update(left="early"))
        return Response(status_code=499) if found is None else JSONResponse(found[0], headers=found[1])

    async def _streamed(self, request: Request, service: Service, asked: Asked) -> Response:
        note = request.state.note
        running, dialect, headers = await begin(request, service, asked)
        events = running.answer.events(running.stream)
        return EventStream(
            with_keep_alive(written(dialect, events), self._cfg.keep_alive_s),
            lambda: note.update(left="early"),
            lambda: release(request, service, running, left="left" in note),
            write_timeout_s=self._cfg.write_timeout_s,
            headers=headers,
        )


async def in_one_piece(request: Request, service: Service, asked: Asked) -> Whole:
    """The whole answer; whoever cancels this has left."""
    running, dialect, headers = await begin(request, service, asked)
    left = True
    try:
        body = await collected(dialect, running.answer.events(running.stream))
        left = False
        return body, headers
    except ApiError:
        left = False
        raise
    finally:
        release(request, service, running, left=left)


async def begin(request: Request, service: Service, asked: Asked) -> tuple[Running, Dialect, dict[str, str]]:
    """The answer as it runs, how it is written, and its headers."""
    account = request.state.account
    running = await service.begin(account, asked.n_choices, asked.make, timeout_of(request))
    headers = account.headers() | naming(asked.ignored) | clamping(running.answer.ask.clamped)
    return running, asked.dialect(running.answer), headers


def release(request: Request, service: Service, running: Running, *, left: bool) -> None:
    """End it, and note for the access log what it was."""
    service.end(running, left=left)
    found, account = running.answer, request.state.account
    request.state.note.update(key=account.name, prompt_tokens=found.n_prompt, completion_tokens=found.n_tokens)


def naming(ignored: Sequence[str]) -> dict[str, str]:
    """The header that names what had no effect; none where everything had."""
    return {"x-ignored-params": ", ".join(ignored)} if ignored else {}


def clamping(most: int | None) -> dict[str, str]:
    """The header that says how much shorter than asked for the answer may be; none where all of it fits."""
    return {} if most is None else {"x-clamped-params": f"max_tokens={most}"}


def idempotency_key(request: Request) -> str:
    """What names this request when it is sent again; "" for none."""
    key = request.headers.get("idempotency-key", "")
    if len(key) > MAX_KEY_CHARS:
        raise invalid(f"The header 'idempotency-key' is longer than {MAX_KEY_CHARS} characters.", "idempotency-key")
    return key


def timeout_of(request: Request) -> float | None:
    """`x-request-timeout-s`: what is written by then is the answer."""
    given = request.headers.get("x-request-timeout-s")
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise invalid("The header 'x-request-timeout-s' must be a number of seconds above 0.", "x-request-timeout-s")
    return seconds
