"""Before the model is there: the address answers, says how far it is, and hands the socket over without a loss."""

import socket
import threading

import httpx
import pytest

from sobre.serve.config import ServeConfig
from sobre.serve.keys import Keyring, Limits, parse_key
from sobre.serve.loading import Loading
from sobre.serve.server import Server, bind

HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}]}


@pytest.fixture
def listener():
    with bind("127.0.0.1", 0) as taken:
        yield taken


def address(listener):
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_85_while_it_loads_the_server_lives_is_not_ready_and_says_how_far_it_is(listener):
    cfg = ServeConfig(model=("m",))
    with Loading(listener, cfg, Keyring([])) as loading, httpx.Client(base_url=address(listener)) as http:
        assert http.get("/healthz").json() == {"status": "ok"}
        loading.read(430, 1000)
        for response in (http.get("/readyz"), http.post("/v1/chat/completions", json=HELLO), http.get("/v1/models")):
            assert response.status_code == 503
            assert 1 <= int(response.headers["retry-after"]) <= 120
            assert response.headers["x-request-id"]
            error = response.json()["error"]
            assert (set(error), error["code"]) == ({"message", "type", "param", "code"}, "loading")
            assert "reading the weights, 43 %" in error["message"]
        said = http.post("/v1/messages", json=HELLO).json()
        assert (said["type"], said["error"]["type"]) == ("error", "overloaded_error")
        page = http.get("/")
        assert "<title>sobre chat</title>" in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert http.get("/healthz", headers={"host": "evil.example"}).status_code == 403


def test_a_key_is_asked_for_while_it_loads_too(listener):
    keys = Keyring([parse_key("k", 1, Limits())])
    with Loading(listener, ServeConfig(model=("m",)), keys), httpx.Client(base_url=address(listener)) as http:
        assert http.get("/readyz").status_code == 503
        assert http.get("/v1/models").status_code == 401
        assert http.get("/v1/models", headers={"authorization": "Bearer k"}).status_code == 503


def test_who_connects_between_loading_and_ready_is_served(listener, live):
    """`live` has an app that answers; a second server gets the socket that was answered with 503 before."""
    cfg = ServeConfig(model=("m",))
    with Loading(listener, cfg, Keyring([])):
        assert httpx.get(f"{address(listener)}/readyz").status_code == 503
    with socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=20) as early:
        early.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

        async def ready(scope, receive, send):
            if scope["type"] == "lifespan":
                while (message := await receive())["type"] != "lifespan.shutdown":
                    await send({"type": f"{message['type']}.complete"})
                await send({"type": "lifespan.shutdown.complete"})
                return
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
            await send({"type": "http.response.body", "body": b"ready"})

        server = Server(ready, live.server.services.__class__([]), cfg)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            said = b""
            while piece := early.recv(4096):
                said += piece
        finally:
            server.should_exit = True
            thread.join(20)
    assert said.startswith(b"HTTP/1.1 200")
    assert said.endswith(b"ready")
