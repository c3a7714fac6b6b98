"""Abuse below the body, by number: slow bodies, many connections, requests that two servers might read differently."""

import concurrent.futures
import json
import re
import resource
import socket
import time

import httpx
import pytest

from sobre.serve.server import bind

HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}]}
PATH = "/v1/chat/completions"
BODY = json.dumps(HELLO | {"max_tokens": 2})
CLOSE = "Connection: close\r\n"
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def all_of(sock):
    """Everything until the server closes."""
    said = b""
    try:
        while piece := sock.recv(65536):
            said += piece
    except ConnectionError:
        pass
    return said


def statuses(said):
    """Of every answer on the connection."""
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", said)]


@pytest.mark.parametrize("chunked", [False, True])
def test_03_a_body_that_comes_byte_by_byte_without_end_is_told_408(serving, scripted, connect, chunked):
    with serving(scripted(lambda request: []), read_timeout_s=0.3) as live, connect(live.url) as sock:
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(BODY) * 1000}"
        sock.sendall(f"{HEAD}{length}\r\n\r\n".encode())
        sock.settimeout(0.05)
        said, deadline = b"", time.monotonic() + 30
        while not said and time.monotonic() < deadline:
            sock.sendall(b"1\r\n \r\n" if chunked else b" ")
            try:
                said = sock.recv(65536)
            except TimeoutError:
                continue
        assert statuses(said) == [408]
        assert live.http.get("/healthz").status_code == 200


@pytest.mark.slow
def test_49_a_thousand_connections_that_say_nothing_keep_nobody_out(live, connect):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # both ends of every connection are this process's
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    idle = [connect(live.url) for _ in range(1000)]
    try:
        for sock in idle[::2]:
            sock.sendall(b"POST /v1/chat")  # half of a first line
        assert live.http.get("/readyz").status_code == 200
        assert live.http.post(PATH, json=HELLO).json()["choices"][0]["finish_reason"] == "stop"
        assert connect(live.url).close() is None
    finally:
        for sock in idle:
            sock.close()


@pytest.mark.slow
def test_54_five_hundred_times_the_same_request_is_answered_the_same_each_time(serving, scripted, answer_ids):
    with serving(scripted(lambda request: answer_ids("hm", "7")), max_open=32) as live:
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            made = list(
                pool.map(lambda _: live.http.post(PATH, json=HELLO | {"temperature": 0}, timeout=120), range(500))
            )
        assert {one.status_code for one in made} == {200}, "no more are open at once than may be"
        assert {one.json()["choices"][0]["message"]["content"] for one in made} == {"7"}
        assert live.bridge.n_open == 0
        assert len(live.engine.asked) == 500


def test_58_whoever_is_turned_away_costs_no_rendering(serving, scripted, tokenizer, monkeypatch, eventually):
    endless = scripted(lambda request: tokenizer.encode("hm ") * 10_000, delay_s=0.01, max_context=10**6)
    with serving(endless, max_open=1) as live, live.http.stream("POST", PATH, json=HELLO | {"stream": True}):
        assert eventually(lambda: endless.left)
        rendered, real = [], tokenizer.render
        monkeypatch.setattr(tokenizer, "render", lambda *a, **k: rendered.append(a) or real(*a, **k))
        large = HELLO | {"messages": [{"role": "user", "content": "x" * 2**19}]}
        with httpx.Client(base_url=live.url, timeout=30) as other:
            for body in (HELLO, large, HELLO | {"stream": True}):
                for _ in range(5):
                    refused = other.post(PATH, json=body)
                    assert refused.status_code == 429
                    assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert rendered == []


def sent(connect, live, text):
    with connect(live.url) as sock:
        sock.settimeout(60)
        sock.sendall(text.encode("latin-1"))
        return all_of(sock)


def chunks(body):
    return f"{len(body):x}\r\n{body}\r\n0\r\n\r\n"


def test_61_two_requests_in_one_piece_are_answered_in_their_order(live, connect):
    one = f"{HEAD}Content-Length: {len(BODY)}\r\nX-Request-Id: first\r\n\r\n{BODY}"
    two = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: second\r\nConnection: close\r\n\r\n"
    said = sent(connect, live, one + two)
    assert statuses(said) == [200, 200]
    assert said.index(b"x-request-id: first") < said.index(b"chat.completion") < said.index(b"x-request-id: second")


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        ("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", chunks(BODY)),
        ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", chunks(BODY)),
        ("Transfer-Encoding: xchunked\r\n", chunks(BODY)),
        ("Transfer-Encoding : chunked\r\n", chunks(BODY)),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", chunks(BODY)),
        (f"Content-Length: {len(BODY)}\r\nContent-Length: 4\r\n", BODY),
        (f"Content-Length: +{len(BODY)}\r\n", BODY),
        ("Transfer-Encoding: chunked\r\n", f"-1\r\n{BODY}\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", f"{len(BODY):x}\r\n{BODY}X\r\n0\r\n\r\n"),
    ],
)
def test_61_a_body_of_two_lengths_is_read_by_its_chunks_or_refused_and_ends_the_connection(live, connect, lines, body):
    """What comes after it must be no second request to one server and a part of the body to the other."""
    before = len(live.engine.asked)
    said = sent(connect, live, f"{HEAD}{lines}\r\n{body}GET /v1/models HTTP/1.1\r\nHost: localhost\r\n{CLOSE}\r\n")
    codes = statuses(said)
    assert codes, said
    assert codes[0] in (200, 400, 501)
    if codes[0] != 200:
        assert codes[1:] == []
        assert len(live.engine.asked) == before
    assert live.http.get("/healthz").status_code == 200


LINES = ["a\rSet-Cookie: x=1", "a\nSet-Cookie: x=1", "a\r\n Set-Cookie: x=1", "a%0d%0aSet-Cookie: x=1", "é\x85"]


@pytest.mark.parametrize("value", LINES)
def test_61_no_line_can_be_put_into_the_answer_by_way_of_the_request_id(live, connect, value):
    said = sent(connect, live, f"GET /healthz HTTP/1.1\r\nHost: localhost\r\n{CLOSE}X-Request-Id: {value}\r\n\r\n")
    assert statuses(said)[0] in (200, 400)
    head = said.partition(b"\r\n\r\n")[0].lower() + b"\r\n"
    assert b"set-cookie" not in head
    assert (b"x-request-id: req-" in head) or b" 400 " in head or b"x-request-id: a\r\n" in head


def test_90_a_reader_that_takes_a_byte_at_a_time_is_dropped_and_disturbs_nobody(
    serving, scripted, tokenizer, connect, eventually
):
    endless = scripted(lambda request: tokenizer.encode("hm ") * 100_000, max_context=10**6)
    listener = bind("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what the system holds is not the server's
    with serving(endless, write_timeout_s=0.3, listener=listener) as live, connect(live.url) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps(HELLO | {"stream": True})
        sock.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        n_read = 0

        def dropped():
            nonlocal n_read
            n_read += len(sock.recv(1))
            return live.bridge.n_open == 0

        assert eventually(lambda: endless.left)
        assert live.http.post(PATH, json=HELLO | {"max_tokens": 5}).status_code == 200
        assert eventually(dropped)
        assert n_read < 20_000, "it was far from the end"
        assert eventually(lambda: endless.aborted)
