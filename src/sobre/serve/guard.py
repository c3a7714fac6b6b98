"""The outermost layer of the server: request ids, host names, keys, errors that nobody caught, the access log.

It works on the raw ASGI scope and denies by default: whatever is not listed in `OPEN` needs a key, whether the route
exists or not. The log holds method, path, status, time and counts; never content, query strings or keys.
"""

import json
import logging
import re
import secrets
import traceback
from collections.abc import Callable, Collection
from time import perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sobre.serve.errors import ApiError, shaped
from sobre.serve.keys import Keyring

log = logging.getLogger("sobre.serve")

MAX_HEADERS = 256
MAX_HEADER_BYTES = 32_768
"""Names and values of all header lines together."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Guard:
    """Wraps the app; `open_paths` need no key."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keyring,
        open_paths: Collection[str],
        hosts: Collection[str] | None,
        responded: Callable[[int], None],
    ) -> None:
        self.app, self.keys, self.open_paths, self.hosts = app, keys, frozenset(open_paths), hosts
        self.responded = responded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        asked = headers.get("x-request-id", "")
        request_id = asked if REQUEST_ID.fullmatch(asked) else new_request_id()
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, note={}, account=self.keys.anyone if self.keys.is_open else None)
        started, status = perf_counter(), 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            refusal = refuse_head(scope["headers"]) or self.refuse(scope["path"], headers, state)
            if refusal is None:
                await self.app(scope, receive, tagged)
            else:
                await send_error(tagged, refusal, scope["path"], request_id)
        except Exception as error:
            log.error("%s failed: %s", request_id, where(error))
            if not status:
                await send_error(
                    tagged, ApiError(500, "The server failed.", code="server_error"), scope["path"], request_id
                )
        finally:
            path = scope["path"] if len(scope["path"]) <= 100 else scope["path"][:100] + "..."
            note = "".join(f" {key}={value}" for key, value in scope["state"]["note"].items())
            seconds = perf_counter() - started
            self.responded(status)
            log.info("%s %s %d %.3fs id=%s%s", scope["method"], ascii(path), status, seconds, request_id, note)

    def refuse(self, path: str, headers: dict[str, str], state: dict[str, Any]) -> ApiError | None:
        """Why this request goes no further; None when it may. The account that a key belongs to joins the state."""
        if self.hosts is not None and host_name(headers.get("host", "")) not in self.hosts:
            message = "This server listens on this machine alone and does not know that host name (--allowed-hosts)."
            return ApiError(403, message, code="unknown_host")
        if self.keys.is_open or path in self.open_paths:
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if "authorization" not in headers and "x-api-key" in headers:  # Anthropic's clients
            scheme, key = "bearer", headers["x-api-key"]
        account = self.keys.find(key)
        if account is None or scheme.lower() != "bearer":
            said = "Incorrect API key provided." if key else "No API key provided; send 'Authorization: Bearer KEY'."
            return ApiError(401, said, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        state["account"] = account
        return None


def refuse_head(headers: Collection[tuple[bytes, bytes]]) -> ApiError | None:
    """Why no request with these header lines goes further; None when it may."""
    if len(headers) > MAX_HEADERS:
        return ApiError(431, f"More than {MAX_HEADERS} header lines.", code="too_many_headers")
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        return head_too_large()
    if {b"transfer-encoding", b"content-length"} <= {name for name, _ in headers}:
        said = "Both 'transfer-encoding' and 'content-length': which one holds, others may read differently."
        return ApiError(400, said, code="ambiguous_length", headers={"connection": "close"})
    return None


def head_too_large() -> ApiError:
    """431: the header lines are longer than this server reads."""
    said = f"The header lines are larger than {MAX_HEADER_BYTES:,} bytes together."
    return ApiError(431, said, code="headers_too_large", headers={"connection": "close"})


def new_request_id() -> str:
    return f"req-{secrets.token_hex(12)}"


def host_name(header: str) -> str:
    """The name in a Host header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def where(error: BaseException) -> str:
    """Type and place of an error, without its message: messages may quote what a user wrote."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in frames[-3:]]
    return f"{type(error).__name__} at {' > '.join(places)}"


async def send_error(send: Send, error: ApiError, path: str, request_id: str) -> None:
    """Answer with the error's JSON."""
    body = encode(shaped(error, path, request_id)).encode()
    headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def encode(data: dict[str, Any]) -> str:
    """JSON on one line of plain ASCII: some clients split lines at U+2028, and here there is none."""
    return json.dumps(data, allow_nan=False, separators=(",", ":"))
