"""While a server cannot answer, before its model is loaded and while it leaves: its address says so.

Health checks see a living server (`/healthz` 200, `/readyz` 503), the page comes and asks again by itself, and clients
get a 503 with `Retry-After`, which they wait for, instead of a refused connection. After loading, the same socket
belongs to the real server: whoever connects in between waits in its queue.
"""

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from sobre.serve.config import ServeConfig
from sobre.serve.errors import ApiError
from sobre.serve.guard import MAX_HEADER_BYTES, Guard, send_error
from sobre.serve.keys import Keyring
from sobre.serve.page import HEADERS, load_assets
from sobre.serve.protocol import Protocol

JOIN_S = 10.0
RETRY_S = 2


def uvicorn_config(app: ASGIApp, cfg: ServeConfig, *, lifespan: Literal["on", "off"], grace_s: int) -> uvicorn.Config:
    """How our servers run: TLS as configured, no log of uvicorn's own, no name in the headers."""
    return uvicorn.Config(
        app,
        http=Protocol,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ssl_certfile=cfg.tls_cert or None,
        ssl_keyfile=cfg.tls_key or None,
        log_config=None,
        access_log=False,
        lifespan=lifespan,
        server_header=False,
        timeout_graceful_shutdown=grace_s,
    )


class Meanwhile:
    """`with Meanwhile(listener, cfg, keys, error):` answers on the listener's address until the block ends."""

    def __init__(self, listener: socket.socket, cfg: ServeConfig, keys: Keyring, error: Callable[[], ApiError]) -> None:
        self._error = error
        self._assets = {asset.path: asset for asset in load_assets()}
        open_paths = {"/healthz", "/readyz", *self._assets}
        guarded = Guard(self._answer, keys=keys, open_paths=open_paths, hosts=cfg.known_hosts, responded=lambda _: None)
        listener.listen()  # from now on nobody is refused
        self._socket = listener.dup()  # uvicorn closes the one that it is given
        self.server = uvicorn.Server(uvicorn_config(guarded, cfg, lifespan="off", grace_s=1))
        self._thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self._socket]}, name="meanwhile", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.server.should_exit = True
        self._thread.join(JOIN_S)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path == "/healthz":
            await reply(send, b'{"status":"ok"}', {"content-type": "application/json"})
        elif path in self._assets and method in ("GET", "HEAD"):
            asset = self._assets[path]
            await reply(send, asset.content if method == "GET" else b"", {"content-type": asset.media_type} | HEADERS)
        else:
            await send_error(send, self._error(), path, scope["state"]["request_id"])


class Loading(Meanwhile):
    """Says what is being done, and how far it is."""

    def __init__(self, listener: socket.socket, cfg: ServeConfig, keys: Keyring) -> None:
        super().__init__(listener, cfg, keys, self._not_yet)
        self.stage = "starting"

    def tell(self, stage: str) -> None:
        """What is being done now."""
        self.stage = stage

    def read(self, done: int, total: int) -> None:
        """How much of the weights is here, in bytes."""
        self.stage = f"reading the weights, {100 * done // max(total, 1)} %"

    def _not_yet(self) -> ApiError:
        message = f"The model is still loading: {self.stage}."
        return ApiError(503, message, code="loading", headers={"retry-after": str(RETRY_S)})


async def reply(send: Send, body: bytes, headers: dict[str, str]) -> None:
    """A 200 with this body."""
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": raw})
    await send({"type": "http.response.body", "body": body})
