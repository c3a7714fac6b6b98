"""Every error leaves in one shape, whoever found it: the guard, a route, the framework, the protocol, or nobody."""

import json

import httpx
import pytest

from sobre.serve.guard import MAX_HEADER_BYTES, refuse_head
from sobre.serve.service import Services

PATH = "/v1/chat/completions"
HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}]}
KEY = {"authorization": "Bearer k1"}


def check_envelope(answered, status, kind):
    """OpenAI's shape as JSON, and a request id."""
    assert answered.status_code == status, answered.text
    assert answered.headers["content-type"] == "application/json"
    assert answered.headers["x-request-id"]
    body = answered.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == kind
    assert body["error"]["message"]
    assert body["error"]["code"]


def test_every_error_has_one_shape_and_a_request_id(serving, scripted, tokenizer, eventually, monkeypatch, caplog):
    engine = scripted(lambda request: tokenizer.encode("hm ") * 5)
    keys = ("k1", "k2 requests_per_min=1", "boss admin")
    wrong = "invalid_request_error"
    with serving(engine, api_key=keys, max_body_bytes=2000) as live:

        def post(headers=KEY, **fields):
            return live.http.post(PATH, json=HELLO | fields, headers=headers)

        check_envelope(post(seed="x"), 400, wrong)
        check_envelope(post(headers={}), 401, wrong)
        check_envelope(live.http.get("/metrics", headers=KEY), 403, wrong)
        check_envelope(post(model="other"), 404, wrong)
        check_envelope(live.http.get("/v3", headers=KEY), 404, wrong)
        check_envelope(live.http.get(PATH, headers=KEY), 405, wrong)
        check_envelope(post(messages=[{"role": "user", "content": "x" * 3000}]), 413, wrong)
        check_envelope(live.http.post(PATH, content=b"x", headers=KEY), 415, wrong)
        limited = {"authorization": "Bearer k2"}
        assert post(headers=limited).status_code == 200
        check_envelope(post(headers=limited), 429, "rate_limit_error")
        engine.fail_step = RuntimeError("broken")
        check_envelope(post(), 500, "server_error")

        def unforeseen(self, name):
            raise KeyError("the secret question")

        with monkeypatch.context() as patched:
            patched.setattr(Services, "find", unforeseen)
            for failed in (post(), post(stream=True), live.http.get("/v1/models/m", headers=KEY)):
                check_envelope(failed, 500, "server_error")
                assert "secret" not in failed.text
            claude = live.http.post("/v1/messages", json=HELLO | {"max_tokens": 5}, headers=KEY)
            assert (claude.status_code, claude.json()["error"]["type"]) == (500, "api_error")
            assert claude.json()["request_id"] == claude.headers["x-request-id"]
        assert sum("failed: KeyError at" in record.getMessage() for record in caplog.records) == 4
        assert "secret" not in caplog.text
        live.bridge.failure = RuntimeError("dead")
        check_envelope(post(), 503, "server_error")
        check_envelope(live.http.get("/readyz"), 503, "server_error")


def told(connect, live, data):
    """What comes back for these bytes, until the server hangs up."""
    with connect(live.url) as sock:
        sock.sendall(data)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\nHost x\r\n\r\n"])
def test_bytes_that_are_no_request_are_told_so_in_the_same_shape(live, connect, data):
    answered = told(connect, live, data)
    check_envelope(answered, 400, "invalid_request_error")
    assert answered.json()["error"]["code"] == "invalid_http"
    assert answered.headers["connection"] == "close"


def test_headers_above_the_limit_are_431_whether_or_not_their_end_has_come(live, connect):
    start = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nCookie: "
    answered = told(connect, live, start + b"x" * (MAX_HEADER_BYTES + 1 - len(start)))  # not one byte stays unread
    check_envelope(answered, 431, "invalid_request_error")
    assert answered.json()["error"]["code"] == "headers_too_large"
    refused = refuse_head([(b"host", b"localhost"), (b"cookie", b"x" * MAX_HEADER_BYTES)])
    assert (refused.status, refused.code) == (431, "headers_too_large")
    assert refuse_head([(b"cookie", b"x" * 70_000)]).status == 431
    assert live.http.get("/healthz", headers={"cookie": "x" * 30_000}).status_code == 200


def test_a_length_that_is_told_in_two_ways_is_refused_and_the_connection_closed(live, connect):
    body = json.dumps(HELLO).encode()
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    both = f"{head}Content-Length: {len(body)}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    before = len(live.engine.asked)
    answered = told(connect, live, both + chunked)
    check_envelope(answered, 400, "invalid_request_error")
    assert answered.json()["error"]["code"] == "ambiguous_length"
    assert answered.headers["connection"] == "close"
    assert len(live.engine.asked) == before
    alone = f"{head}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    assert told(connect, live, alone + chunked).status_code == 200
