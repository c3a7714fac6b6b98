"""Batches through the official client: a file of requests goes in, answers and errors come back, line by line."""

import json

import httpx
import openai
import pytest

from sobre.errors import SobreError
from sobre.serve import batches as module
from sobre.serve.files import Files

ANSWER = "It is seven: 七 🧑‍🚀."
CHAT = "/v1/chat/completions"


def line(custom_id, url=CHAT, **fields):
    body = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?\u2028 七"}]} | fields
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def jsonl(*lines):
    return "\r\n".join(json.dumps(one, ensure_ascii=False) for one in lines).encode()


@pytest.fixture
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def started(client, *lines, **fields):
    sent = client.files.create(file=("in.jsonl", jsonl(*lines)), purpose="batch")
    asked = {"input_file_id": sent.id, "endpoint": CHAT, "completion_window": "24h"} | fields
    return client.batches.create(**asked)


def records(client, file_id):
    return {one["custom_id"]: one for one in map(json.loads, client.files.content(file_id).text.splitlines())}


def test_74_each_line_is_answered_or_told_its_error(client, live, eventually):
    lines = [line("a"), line("b", temperature=9), line("c", n=2), line("d", model="other")]
    batch = started(client, *lines, metadata={"of": "me"})
    assert (batch.status, batch.metadata) == ("validating", {"of": "me"})
    assert eventually(lambda: client.batches.retrieve(batch.id).status == "completed")
    batch = client.batches.retrieve(batch.id)
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (4, 2, 2)
    told = records(client, batch.output_file_id)
    assert set(told) == {"a", "c"}
    whole = openai.types.chat.ChatCompletion.model_validate(told["a"]["response"]["body"])
    alone = client.chat.completions.create(**lines[0]["body"])
    assert whole.choices[0].message.content == alone.choices[0].message.content == ANSWER
    assert whole.usage.prompt_tokens == alone.usage.prompt_tokens
    assert len(told["c"]["response"]["body"]["choices"]) == 2
    wrong = records(client, batch.error_file_id)
    assert {name: one["response"]["status_code"] for name, one in wrong.items()} == {"b": 400, "d": 404}
    assert wrong["b"]["response"]["body"]["error"]["param"] == "temperature"
    assert live.bridge.n_open == 0
    assert batch.id in [one.id for one in client.batches.list(limit=1)]


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/v1/completions", {"prompt": "3+4=", "max_tokens": 5}),
        ("/v1/embeddings", {"input": "3+4"}),
        ("/v1/responses", {"input": "3+4?"}),
    ],
)
def test_74_the_other_endpoints_take_batches_too(client, eventually, url, body):
    asked = line("a", url) | {"body": {"model": "scripted"} | body}
    batch = started(client, asked, endpoint=url)
    assert eventually(lambda: client.batches.retrieve(batch.id).status == "completed")
    assert client.batches.retrieve(batch.id).request_counts.completed == 1


@pytest.mark.parametrize(
    ("content", "number", "param"),
    [
        (jsonl(line("a"), line("a")), 2, "custom_id"),
        (jsonl(line("a"), line("b", "/v1/embeddings")), 2, "url"),
        (jsonl(line("a", stream=True)), 1, "body.stream"),
        (jsonl(line("")), 1, "custom_id"),
        (jsonl(line("a") | {"method": "GET"}), 1, "method"),
        (jsonl(line("a") | {"more": 1}), 1, "more"),
        (b"\n\n{", 3, None),
        (b"\n", None, None),
    ],
)
@pytest.mark.slow
def test_74_a_file_with_faults_is_refused_whole_and_each_fault_has_its_line(
    client, live, eventually, content, number, param
):
    sent = client.files.create(file=("in.jsonl", content), purpose="batch")
    before = len(live.engine.asked)
    batch = client.batches.create(input_file_id=sent.id, endpoint=CHAT, completion_window="24h")
    assert eventually(lambda: client.batches.retrieve(batch.id).status == "failed")
    faults = client.batches.retrieve(batch.id).errors.data
    assert [(fault.line, fault.param) for fault in faults] == [(number, param)]
    assert len(live.engine.asked) == before


@pytest.mark.slow
def test_74_a_batch_is_cancelled_and_expires_with_what_it_has(serving, scripted, tokenizer, eventually, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 2)
    slow = scripted(lambda request: tokenizer.encode("hm ") * request.params.max_tokens, delay_s=0.005)
    with serving(slow) as live, openai.OpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0) as client:
        lines = [line("quick", max_tokens=1), *(line(f"long {i}", max_tokens=100) for i in range(3))]
        batch = started(client, *lines)
        assert eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed == 1)
        assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
        assert eventually(lambda: client.batches.retrieve(batch.id).status == "cancelled")
        assert eventually(lambda: not slow.left and live.bridge.n_open == 0)
        assert set(records(client, client.batches.retrieve(batch.id).output_file_id)) == {"quick"}
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(batch.id)
        monkeypatch.setattr(module, "WINDOW_S", 0.2)
        batch = started(client, *lines)
        assert eventually(lambda: client.batches.retrieve(batch.id).status == "expired")
        batch = client.batches.retrieve(batch.id)
        assert set(records(client, batch.output_file_id)) == {"quick"}
        told = records(client, batch.error_file_id)
        assert {one["error"]["code"] for one in told.values()} == {"batch_expired"}
        assert len(told) == 3
        assert eventually(lambda: not slow.left and live.bridge.n_open == 0)


@pytest.mark.slow
def test_74_a_full_server_makes_lines_wait_and_others_are_served_beside(serving, scripted, answer_ids, eventually):
    with (
        serving(scripted(lambda request: answer_ids("a", "b")), max_open=2) as live,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0) as client,
    ):
        batch = started(client, *(line(str(i)) for i in range(4)))
        assert eventually(lambda: client.batches.retrieve(batch.id).status == "completed", 20)
        assert client.batches.retrieve(batch.id).request_counts.completed == 4


def test_74_files_and_batches_belong_to_their_key(serving, scripted, answer_ids):
    with serving(scripted(lambda request: answer_ids("a", "b")), api_key=("mine", "yours")) as live:

        def as_key(key):
            return openai.OpenAI(base_url=f"{live.url}/v1", api_key=key, max_retries=0)

        with as_key("mine") as mine, as_key("yours") as yours:
            batch = started(mine, line("a"))
            assert batch.input_file_id in [one.id for one in mine.files.list()]
            assert not list(yours.files.list())
            assert not list(yours.batches.list())
            asked = {"endpoint": CHAT, "completion_window": "24h"}
            for attempt in (
                lambda: yours.files.content(batch.input_file_id),
                lambda: yours.files.delete(batch.input_file_id),
                lambda: yours.batches.retrieve(batch.id),
                lambda: yours.batches.cancel(batch.id),
                lambda: yours.batches.create(input_file_id=batch.input_file_id, **asked),
            ):
                with pytest.raises(openai.NotFoundError):
                    attempt()
            assert mine.files.delete(batch.input_file_id).deleted


def test_files_expire_and_nothing_is_dropped_for_want_of_room():
    now = [0.0]
    files = Files(lambda: now[0], max_bytes=10)
    kept = files.add("me", "a", "batch", b"12345678")
    with pytest.raises(SobreError, match="has room for 2"):
        files.add("you", "b", "batch", b"123")
    assert files.find("me", kept.id).content == b"12345678"
    now[0] = 86_400.0
    with pytest.raises(SobreError, match="may have expired"):
        files.find("me", kept.id)
    assert files.add("you", "b", "batch", b"0123456789").content == b"0123456789"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"--x\r\n", "multipart/form-data; boundary=x", 400),
        (b"nothing", "multipart/form-data", 400),
        (b"{}", "application/json", 415),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n1\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            400,
        ),
    ],
)
@pytest.mark.slow
def test_what_is_no_form_is_refused(live, content, kind, status):
    answer = httpx.post(f"{live.url}/v1/files", content=content, headers={"content-type": kind})
    assert (answer.status_code, set(answer.json()["error"])) == (status, {"message", "type", "param", "code"})
    for asked in ("limit=0", "limit=x", "after=no", "colour=red"):
        assert live.http.get(f"/v1/files?{asked}").status_code == 400
