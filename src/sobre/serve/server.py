"""Running the app with uvicorn: a socket bound before anything is loaded, one line when ready, a drain on SIGTERM."""

import asyncio
import logging
import signal
import socket
from contextlib import ExitStack
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from sobre.errors import RunError
from sobre.serve.config import ServeConfig
from sobre.serve.errors import stopping
from sobre.serve.keys import Keyring
from sobre.serve.loading import Meanwhile, uvicorn_config
from sobre.serve.say import say
from sobre.serve.service import Services

GRACE_S = 2.0
"""Seconds for the last events to reach the clients after the drain has ended."""


def bind(host: str, port: int) -> socket.socket:
    """Take the address now, so that a taken port is said before a model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        what = error.strerror or str(error)
        raise RunError(f"cannot listen on {host}:{port}: {what}; another --port, or --port 0 for a free one") from None
    return taken


class Server(uvicorn.Server):
    """uvicorn that says when it is ready, and ends what still runs when the time to drain is over."""

    def __init__(self, app: ASGIApp, services: Services, cfg: ServeConfig) -> None:
        grace_s = round(cfg.drain_s + GRACE_S + 0.5)
        super().__init__(uvicorn_config(app, cfg, lifespan="on", grace_s=grace_s))
        self.services, self.cfg = services, cfg
        self.scheme = "https" if cfg.tls_cert else "http"
        self.stopped_by: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second one leaves at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.stopped_by = sig

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            say(f"ready {self.scheme}://{shown}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell newcomers that it leaves; let running answers end; after `drain_s`, end them with an error."""
        self.services.drain()
        alarm = asyncio.get_running_loop().call_later(self.cfg.drain_s, self.services.fail_all, stopping())
        try:
            with ExitStack() as meanwhile:
                busy = any(service.bridge.n_open for service in self.services.each)
                for listener in (sockets or ()) if busy else ():
                    meanwhile.enter_context(Meanwhile(listener, self.cfg, Keyring([]), stopping))
                await super().shutdown(sockets)
        finally:
            alarm.cancel()


def run_server(app: ASGIApp, services: Services, listener: socket.socket, cfg: ServeConfig) -> int:
    """Serve until a signal; the exit code: 0 after SIGTERM, 130 after Ctrl-C."""
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    server = Server(app, services, cfg)
    server.run(sockets=[listener])
    return 130 if server.stopped_by == signal.SIGINT else 0
