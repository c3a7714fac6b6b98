"""How requests end: each is counted, billed and let go, whatever was written and whoever left."""

import json
import threading

import pytest

from sobre.serve.ask import Writer

PATH = "/v1/chat/completions"
HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}]}
KEY = {"authorization": "Bearer k1"}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_no_next_turn_can_hold_is_billed_and_leaves_no_request_open(
    serving, scripted, answer_ids, eventually, stream
):
    """A tag spelt as text and never closed: the chat layout refuses the history."""
    engine = scripted(lambda request: answer_ids("hm", "<think> so it is 7"))
    with serving(engine, api_key=("k1 admin max_open=1",)) as live:
        for n in (1, 2, 3):
            answered = live.http.post(PATH, json=HELLO | {"stream": stream}, headers=KEY)
            assert answered.status_code == 200
            assert "<think> so it is 7" in answered.text or stream
            row = live.http.get("/v1/sobre/keys", headers=KEY).json()["data"][0]
            assert (row["open"], row["requests"]) == (0, n)
            assert row["tokens"] >= 20 * n
            assert row["usd"] > 0
        assert eventually(lambda: not live.bridge.n_open)
        assert engine.warmed == []


def counted(live, name, **labels):
    """A counter of /metrics; 0 while it was never counted."""
    said = ",".join(f'{label}="{value}"' for label, value in labels.items())
    line = next(
        (one for one in live.http.get("/metrics").text.splitlines() if one.startswith(f"{name}{{{said}}} ")), "0"
    )
    return float(line.split()[-1])


def sent(connect, live, body, length=None):
    """A connection that has sent this much of a request."""
    sock = connect(live.url)
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body)
    return sock


def test_a_client_that_leaves_while_its_body_comes_is_no_failure_of_the_server(
    serving, scripted, connect, eventually, caplog
):
    with serving(scripted(lambda request: [5])) as live:
        sent(connect, live, b'{"model":', length=100).close()
        assert eventually(lambda: counted(live, "sobre_http_requests_total", status="499") == 1)
        assert counted(live, "sobre_http_requests_total", status="500") == 0
    assert not any("failed" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_its_request_is_laid_out_is_counted(
    serving, scripted, connect, eventually, monkeypatch, stream
):
    engine = scripted(lambda request: [5] * 100, delay_s=0.002)
    begun, go_on = threading.Event(), threading.Event()

    def slow(self, chat, tools):
        begun.set()
        assert go_on.wait(30)
        return (5, 6)

    with serving(engine) as live:
        monkeypatch.setattr(Writer, "render", slow)
        sock = sent(connect, live, json.dumps(HELLO | {"stream": stream}).encode())
        assert begun.wait(30)
        sock.close()
        if stream:  # its first bytes find nobody
            go_on.set()
        assert eventually(lambda: counted(live, "sobre_request_cancelled_total", model_name="scripted") == 1)
        go_on.set()
        assert eventually(lambda: live.bridge.n_open == 0)
        assert counted(live, "sobre_http_requests_total", status="500") == 0
