"""The outermost layer of the server: request ids, host names, keys, errors that nobody caught, the access log.

It works on the raw ASGI scope and denies by default: whatever is not listed in `OPEN` needs a key, whether the route
exists or not. The log holds method, path, status, time and counts; never content, query strings or keys.
"""

import hashlib
import hmac
import json
import logging
import re
import secrets
import traceback
from collections.abc import Collection, Sequence
from time import perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sobre.serve.errors import ApiError

log = logging.getLogger("sobre.serve")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Guard:
    """Wraps the app; `open_paths` need no key."""

    def __init__(
        self, app: ASGIApp, *, keys: Sequence[str], open_paths: Collection[str], hosts: Collection[str] | None
    ) -> None:
        self.app, self.open_paths, self.hosts = app, frozenset(open_paths), hosts
        self.digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        asked = headers.get("x-request-id", "")
        request_id = asked if REQUEST_ID.fullmatch(asked) else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {}).update(request_id=request_id, note={})
        started, status = perf_counter(), 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            refusal = self.refuse(scope["path"], headers)
            if refusal is None:
                await self.app(scope, receive, tagged)
            else:
                await send_error(tagged, refusal)
        except Exception as error:
            log.error("%s failed: %s", request_id, where(error))
            if not status:
                await send_error(tagged, ApiError(500, "The server failed.", code="server_error"))
        finally:
            path = scope["path"] if len(scope["path"]) <= 100 else scope["path"][:100] + "..."
            note = "".join(f" {key}={value}" for key, value in scope["state"]["note"].items())
            seconds = perf_counter() - started
            log.info("%s %s %d %.3fs id=%s%s", scope["method"], ascii(path), status, seconds, request_id, note)

    def refuse(self, path: str, headers: dict[str, str]) -> ApiError | None:
        """Why this request goes no further; None when it may."""
        if self.hosts is not None and host_name(headers.get("host", "")) not in self.hosts:
            message = "This server listens on this machine alone and does not know that host name (--allowed-hosts)."
            return ApiError(403, message, code="unknown_host")
        if not self.digests or path in self.open_paths:
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(key.encode("latin-1")).digest()
        known = False
        for own in self.digests:  # every key is compared, so the time tells nothing
            known |= hmac.compare_digest(digest, own)
        if known and scheme.lower() == "bearer":
            return None
        message = (
            "Incorrect API key provided." if key else "No API key provided; send it as 'Authorization: Bearer KEY'."
        )
        return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


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


async def send_error(send: Send, error: ApiError) -> None:
    """Answer with the error's JSON."""
    body = encode(error.body()).encode()
    headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def encode(data: dict[str, Any]) -> str:
    """JSON on one line of plain ASCII: some clients split lines at U+2028, and here there is none."""
    return json.dumps(data, allow_nan=False, separators=(",", ":"))
