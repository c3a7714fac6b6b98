"""Keys, limits, clients that leave, engines that fail, and the end of the server."""

import asyncio
import json
import logging
import os
import resource
import threading
import time

import httpx
import openai
import pytest

HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "the secret question"}]}
PATH = "/v1/chat/completions"


@pytest.fixture
def slow(scripted, tokenizer):
    """An engine that would think for a long time, five milliseconds a token."""
    return scripted(lambda request: tokenizer.encode("hm ") * 10_000, delay_s=0.005)


def head(length):
    """The first lines of a request with a body of `length` bytes."""
    lines = [f"POST {PATH} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def raw_post(connect, live, **fields):
    """A request on a socket of its own, without waiting for the answer."""
    body = json.dumps(HELLO | fields).encode()
    sock = connect(live.url)
    sock.sendall(head(len(body)) + body)
    return sock


@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": True, "n": 3}, {"stream": False}, {"n": 2}])
@pytest.mark.slow
def test_a_client_that_leaves_frees_the_engine_at_once_and_disturbs_nobody(serving, slow, connect, eventually, fields):
    with serving(slow) as live:
        other = {}

        def stay():
            with httpx.Client(base_url=live.url, timeout=20) as http:
                other["answer"] = http.post(PATH, json=HELLO | {"max_tokens": 40})

        staying = threading.Thread(target=stay)
        staying.start()
        sock = raw_post(connect, live, **fields)
        n = fields.get("n", 1)
        assert eventually(lambda: len(slow.left) == n + 1)
        if fields.get("stream"):
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
        sock.close()
        assert eventually(lambda: len(slow.aborted) == n)
        staying.join()
        assert other["answer"].status_code == 200
        assert other["answer"].json()["usage"]["completion_tokens"] == 40
        assert eventually(lambda: not slow.left and live.bridge.n_open == 0)


@pytest.mark.slow
def test_five_hundred_clients_that_leave_at_every_moment_leave_nothing_behind(serving, slow, connect, eventually):
    """No answer, no task of the server, no file of the process."""
    with serving(slow, max_open=1000) as live:
        loop = live.bridge._loop

        def held():
            counted = asyncio.run_coroutine_threadsafe(n_tasks(), loop).result(5)
            return counted, len(os.listdir("/dev/fd"))

        live.http.post(PATH, json=HELLO | {"max_tokens": 2})
        before = held()
        for i in range(500):
            sock = raw_post(connect, live, stream=bool(i % 2), n=1 + i % 3)
            time.sleep(0.001 * (i % 5))
            sock.close()
        assert eventually(lambda: not slow.left and live.bridge.n_open == 0, 10)
        assert live.http.post(PATH, json=HELLO | {"max_tokens": 2}).status_code == 200
        assert eventually(lambda: all(now <= then for now, then in zip(held(), before, strict=True)), 10), before


async def n_tasks():
    return len(asyncio.all_tasks())


def test_a_client_that_leaves_is_noted_in_the_access_log_without_content(serving, slow, connect, eventually, caplog):
    caplog.set_level(logging.INFO, "sobre.serve")
    with serving(slow, api_key=("the-secret-key",)) as live:
        headers = {"authorization": "Bearer the-secret-key", "x-request-id": "kept"}
        live.http.post(PATH + "?secret=query", json=HELLO | {"max_tokens": 2}, headers=headers)
        live.http.get("/secret%0A%1B[31m", headers={"authorization": "Bearer wrong-secret"})
        live.http.post(PATH, json=HELLO | {"stop": ["the secret stop", 5]}, headers=headers)
        raw_post(connect, live).close()
    lines = [record.getMessage() for record in caplog.records if record.name == "sobre.serve"]
    assert any(
        "200" in line and "id=kept key=key0 prompt_tokens=" in line and "completion_tokens=2" in line for line in lines
    )
    assert not any("secret" in line and "/secret" not in line for line in lines)
    assert not any("\n" in line or "\x1b" in line for line in lines)


@pytest.mark.slow
def test_keys_guard_everything_but_the_page_and_the_health(serving, slow):
    with serving(slow, api_key=("first-key", "second-key")) as live:
        http = live.http
        for path in ("/", "/main.js", "/style.css", "/icon.svg", "/healthz", "/readyz"):
            assert http.get(path).status_code == 200
        for key in ("first-key", "second-key"):
            assert http.get("/v1/models", headers={"authorization": f"bearer {key}"}).status_code == 200
        wrong = [
            "",
            "first-key",
            "Basic first-key",
            "Bearer  first-key",
            "Bearer first-ke",
            "Bearer first-keyy",
            "Bearer",
        ]
        for value in [*wrong, "Bearer " + "x" * 5000, "Bearer é"]:
            response = http.get("/v1/models", headers=[(b"authorization", value.encode("latin-1"))])
            assert response.status_code == 401, value
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
        for path in (
            "//v1/models",
            "/v1/../v1/models",
            "/%76%31/models",
            "/v1/models;x",
            "/healthz/../v1/models",
            "/v2",
        ):
            request = http.build_request("GET", live.url)
            request.url = request.url.copy_with(raw_path=path.encode())
            assert http.send(request).status_code in (401, 404), path
        assert http.get("/v1/models?api_key=first-key").status_code == 401
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                client.models.list()


def test_on_loopback_a_foreign_host_name_is_refused(serving, slow):
    with serving(slow, allowed_hosts=("my.proxy",)) as live:
        for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "my.proxy"):
            assert live.http.get("/healthz", headers={"host": host}).status_code == 200
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", ""):
            assert live.http.get("/healthz", headers={"host": host}).status_code == 403


def test_a_body_that_is_too_large_or_too_slow_is_refused(serving, slow, connect):
    with serving(slow, max_body_bytes=2000, read_timeout_s=0.2) as live:
        json_type = {"content-type": "application/json"}
        response = live.http.post(PATH, content=b"x" * 2001, headers=json_type)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
        chunked = live.http.post(PATH, content=iter([b"x" * 1500] * 3), headers=json_type)
        assert chunked.status_code == 413
        sock = connect(live.url)
        sock.sendall(head(50) + b'{"model"')
        assert sock.recv(100).startswith(b"HTTP/1.1 408")
        sock.close()


@pytest.mark.slow
def test_five_hundred_bodies_that_never_end_keep_nobody_out_and_are_told_408(serving, slow, connect):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # both ends of every connection are this process's
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    with serving(slow, read_timeout_s=1.0) as live:
        sockets = [connect(live.url) for _ in range(500)]
        for sock in sockets:
            sock.sendall(head(50) + b"{")
        began = time.monotonic()
        assert live.http.post(PATH, json=HELLO | {"max_tokens": 1}).status_code == 200
        assert time.monotonic() - began < 5
        assert all(sock.recv(100).startswith(b"HTTP/1.1 408") for sock in sockets)
        for sock in sockets:
            sock.close()


def test_more_requests_than_may_wait_are_told_429_and_when_to_come_back(serving, slow, connect, eventually):
    with serving(slow, max_open=2) as live:
        sock = raw_post(connect, live, n=2)
        assert eventually(lambda: len(slow.left) == 2)
        response = live.http.post(PATH, json=HELLO)
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "too_many_requests"
        assert int(response.headers["retry-after"]) <= 120
        sock.close()
        assert eventually(lambda: live.bridge.n_open == 0)
        assert live.http.post(PATH, json=HELLO | {"max_tokens": 1}).status_code == 200


def test_an_engine_error_reaches_the_client_and_the_next_request_is_served(serving, slow, eventually):
    with serving(slow) as live, openai.OpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0) as client:
        slow.fail_step = RuntimeError("the secret question")
        response = live.http.post(PATH, json=HELLO)
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "engine_error"
        assert "secret" not in response.text
        stream = client.chat.completions.create(**HELLO, stream=True)
        next(iter(stream))
        slow.fail_step = RuntimeError("again")
        with pytest.raises(openai.APIError, match="engine failed"):
            for _ in stream:
                pass
        assert live.http.post(PATH, json=HELLO | {"max_tokens": 2}).status_code == 200
        assert live.http.get("/readyz").status_code == 200


def test_a_dead_engine_is_not_ready_and_answers_503(serving, slow, eventually):
    with serving(slow) as live:
        slow.fail_step, slow.fail_abort = RuntimeError("poisoned"), RuntimeError("broken")
        assert live.http.post(PATH, json=HELLO).status_code == 500
        assert eventually(lambda: live.bridge.failure is not None)
        assert live.http.post(PATH, json=HELLO).status_code == 503
        assert live.http.get("/readyz").status_code == 503
        assert live.http.get("/healthz").status_code == 200


def test_a_stream_that_waits_is_kept_alive_by_comments(serving, scripted, tokenizer, answer_ids):
    waiting = scripted(lambda request: answer_ids("a", "b"), delay_s=0.06)
    with serving(waiting, keep_alive_s=0.02) as live:
        text = live.http.post(PATH, json=HELLO | {"stream": True}).text
        assert ": keep-alive\n\ndata: " in text
        assert text.endswith("\n\ndata: [DONE]\n\n")


def test_stopping_lets_running_answers_end(serving, slow, eventually):
    with serving(slow) as live:
        with live.http.stream("POST", PATH, json=HELLO | {"stream": True, "max_tokens": 60}) as response:
            lines = response.iter_lines()
            next(lines)
            live.server.should_exit = True
            text = "\n".join(lines)
    assert '"finish_reason":"length"' in text
    assert text.rstrip().endswith("data: [DONE]")


def test_what_still_runs_when_the_drain_is_over_ends_with_an_error_and_done(serving, slow):
    with serving(slow, drain_s=0.3) as live:
        with live.http.stream("POST", PATH, json=HELLO | {"stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            live.server.should_exit = True
            *_, error, _, done, _ = lines
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "server_stopping"
    assert done == "data: [DONE]"
