"""More of the conformance list, by number: what a check says beyond its first sentence (map: test_conformance.py)."""

import asyncio
import json
import threading
import time
from types import SimpleNamespace

import httpx
import openai
import pytest

from sobre.serve.chat import FLOOR, ChatDialect

HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}]}
PATH = "/v1/chat/completions"
THOUGHT, ANSWER = "three plus four 🙂", "It is seven: 七 🧑‍🚀."
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
CALLS = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": "七\\"}"}<｜tool▁call▁end｜>'
    '<｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 4}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)


def post(live, **fields):
    return live.http.post(PATH, json=HELLO | fields)


def chunks_of(response):
    events = [event.removeprefix("data: ") for event in response.text.split("\n\n") if event.startswith("data: {")]
    return [json.loads(event) for event in events]


@pytest.fixture
def calling(serving, scripted, answer_ids):
    """A server whose model thinks and then calls `add` twice."""
    with serving(scripted(lambda request: answer_ids(THOUGHT, CALLS), max_context=2000)) as live:
        yield live


def test_03_one_connection_carries_stream_after_stream_also_of_the_async_client(live):
    with httpx.Client(base_url=live.url) as http:
        answers = [http.post(PATH, json=HELLO | {"stream": True}) for _ in range(3)]
        assert len({answer.extensions["network_stream"].get_extra_info("client_addr") for answer in answers}) == 1

    async def two_streams():
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0) as client:
            for _ in range(2):
                stream = await client.chat.completions.create(**HELLO, stream=True)
                text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return text

    assert asyncio.run(two_streams()) == ANSWER


def test_05_a_stream_speaks_before_its_first_token(serving, scripted, answer_ids):
    with serving(scripted(lambda request: answer_ids("a", "b"), delay_s=0.5), keep_alive_s=0.05) as live:
        events = post(live, stream=True, max_tokens=2).text.split("\n\n")
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
    assert events[1] == ": keep-alive"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_16_thoughts_come_under_the_one_name_that_was_chosen(serving, scripted, answer_ids, name):
    (other,) = {"reasoning_content", "reasoning"} - {name}
    with serving(scripted(lambda request: answer_ids(THOUGHT, ANSWER)), reasoning_field=name) as live:
        message = post(live).json()["choices"][0]["message"]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks_of(post(live, stream=True))]
    assert message[name] == "".join(delta[name] or "" for delta in deltas) == THOUGHT
    assert all(name in delta and other not in delta for delta in (message, *deltas))


def test_34_a_called_turn_without_its_thought_is_read_and_refused_where_that_is_asked_for(
    serving, scripted, answer_ids
):
    turn = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "c", "content": "7"}
    for strict in (False, True):
        engine = scripted(lambda request: answer_ids("hm", "7"), max_context=2000)
        with serving(engine, strict_reasoning=strict) as live:

            def status(live=live, more=None, **fields):
                body = {"messages": [*HELLO["messages"], turn | (more or {}), result], "tools": [ADD]} | fields
                answered = post(live, **body)
                return answered.status_code, (answered.json().get("error") or {}).get("param")

            assert status() == ((400, "messages[1].reasoning_content") if strict else (200, None))
            assert status(thinking={"type": "disabled"}) == (200, None)
            for more in ({"reasoning_content": "hm"}, {"reasoning": "hm"}, {"reasoning_content": ""}):
                assert status(more=more) == (200, None)
            details = [{"type": "reasoning.text", "text": "hm"}]
            assert status(more={"reasoning_details": details}) == (200, None)


def test_35_with_tools_no_thought_of_the_history_is_dropped_and_without_them_all_are(calling, tokenizer):
    history = [*HELLO["messages"], {"role": "assistant", "content": "7", "reasoning_content": "because"}]
    history.append({"role": "user", "content": "and?"})
    for fields, kept in (({"tools": [ADD]}, True), ({}, False), ({"tools": [ADD], "tool_choice": "none"}, False)):
        post(calling, messages=history, **fields)
        assert ("because" in tokenizer.decode(calling.engine.asked[-1].prompt_ids)) is kept, fields


def test_36_an_assistants_turn_may_have_no_text_in_every_way_of_saying_so(calling):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    result = {"role": "tool", "tool_call_id": "c", "content": parts}
    prompts = []
    for content in ({"content": None}, {"content": ""}, {"content": []}, {}):
        turn = {"role": "assistant", "tool_calls": [CALL], **content}
        assert post(calling, messages=[*HELLO["messages"], turn, result], tools=[ADD]).status_code == 200
        prompts.append(calling.engine.asked[-1].prompt_ids)
    assert len(set(prompts)) == 1
    plain = [*HELLO["messages"], {"role": "assistant", "content": parts}, {"role": "user", "content": "and?"}]
    same = [plain[0], {"role": "assistant", "content": "ab"}, plain[2]]
    assert post(calling, messages=plain).status_code == post(calling, messages=same).status_code == 200
    assert calling.engine.asked[-1].prompt_ids == calling.engine.asked[-2].prompt_ids


def test_37_histories_of_unusual_order_are_read(live):
    user, said = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    for messages in (
        [user, user, said, said, user],
        [said, user],
        [{"role": "system", "content": ""}, user],
        [{"role": "developer", "content": "be brief"}, user],
        [user | {"name": "ann"}, said | {"name": "bot"}, user],
    ):
        assert post(live, messages=messages).status_code == 200, messages
    post(live, messages=[{"role": "developer", "content": "be brief"}, user])
    post(live, messages=[{"role": "system", "content": "be brief"}, user])
    assert live.engine.asked[-1].prompt_ids == live.engine.asked[-2].prompt_ids
    for role in ("function", "wizard", "", None):
        answer = post(live, messages=[{"role": role, "content": "x"}])
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages[0].role")


def test_41_to_43_a_call_begins_with_its_name_and_goes_on_with_its_arguments_alone(calling):
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks_of(post(calling, stream=True, tools=[ADD]))]
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", ())]
    first = {}
    for piece in pieces:
        if piece["index"] not in first:
            first[piece["index"]] = piece
            assert set(piece) == {"index", "id", "type", "function"}
            assert (piece["type"], piece["function"]) == ("function", {"name": "add", "arguments": ""})
        else:
            assert set(piece) == {"index", "function"}
            assert set(piece["function"]) == {"arguments"}
    assert list(first) == [0, 1]
    ids = [piece["id"] for piece in first.values()]
    assert len(set(ids)) == 2
    assert all(one.startswith("call_") and len(one) <= 40 for one in ids)
    told = ["".join(p["function"]["arguments"] for p in pieces if p["index"] == index) for index in (0, 1)]
    assert [json.loads(text) for text in told] == [{"a": '七"}'}, {"a": 4}]


def test_44_a_call_that_was_cut_off_says_length(calling, answer_ids):
    n = len(answer_ids(THOUGHT, CALLS))
    for cut in (n - 5, n - 25):
        for stream in (False, True):
            answer = post(calling, tools=[ADD], max_tokens=cut, stream=stream)
            choice = chunks_of(answer)[-1]["choices"][0] if stream else answer.json()["choices"][0]
            assert choice["finish_reason"] == "length"


def test_45_a_model_that_must_not_call_is_told_of_no_tool(calling, tokenizer):
    said = post(calling, tools=[ADD], tool_choice="none").json()["choices"][0]
    assert (said["finish_reason"], said["message"].get("tool_calls")) == ("stop", None)
    assert "add" not in tokenizer.decode(calling.engine.asked[-1].prompt_ids)
    post(calling, tools=[ADD], tool_choice="auto")
    assert '"add"' in tokenizer.decode(calling.engine.asked[-1].prompt_ids)


def test_56_the_newer_name_of_the_longest_answer_goes_before_the_older(live):
    for fields, ignored in (
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 4}, None),
        ({"max_completion_tokens": 4}, None),
        ({"max_tokens": 4}, None),
    ):
        answered = post(live, **fields)
        assert answered.json()["usage"]["completion_tokens"] == 4
        assert answered.headers.get("x-ignored-params") == ignored
    for stop in ([], None):
        assert post(live, max_tokens=1, stop=stop).json()["usage"]["completion_tokens"] == 1


def test_60_a_probability_of_nothing_is_a_number_that_json_knows():
    dialect = ChatDialect(None, SimpleNamespace(ask=SimpleNamespace(token_bytes=lambda _: b"x")))
    assert dialect.named(1, float("-inf")) == {"token": "x", "logprob": FLOOR, "bytes": [120]}


def test_68_and_69_a_models_name_may_have_a_slash_and_must_be_said(serving, scripted, answer_ids):
    engines = [scripted(lambda request: answer_ids("hm", "7")) for _ in range(2)]
    with serving(engines[0], others={"org/other name": engines[1]}) as live:
        for spelling in ("org/other%20name", "org%2Fother%20name"):
            found = live.http.get(f"/v1/models/{spelling}").json()
            assert (found["id"], found["object"]) == ("org/other name", "model")
            assert isinstance(found["created"], int)
        assert live.http.post(PATH, json=HELLO | {"model": "org/other name"}).json()["model"] == "org/other name"
        assert (len(engines[0].asked), len(engines[1].asked)) == (0, 1)
        for model, status, code in ((None, 400, "invalid_value"), ("", 404, "model_not_found")):
            answer = live.http.post(PATH, json=HELLO | {"model": model})
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        nameless = live.http.post(PATH, json={"messages": HELLO["messages"]})
        assert (nameless.status_code, nameless.json()["error"]["code"]) == (400, "missing_field")


def test_70_a_gap_is_filled_between_deepseeks_marks(live, tokenizer, monkeypatch):
    """The vocabulary of the tests has no such marks: three of its tokens stand for them."""
    marks = {"<｜fim▁begin｜>": 260, "<｜fim▁hole｜>": 261, "<｜fim▁end｜>": 262}
    found = tokenizer.find
    monkeypatch.setattr(tokenizer, "find", lambda text: marks.get(text) or found(text))
    body = {"model": "scripted", "prompt": "def f(", "suffix": "return", "max_tokens": 100}
    made = live.http.post("/v1/completions", json=body).json()
    before, after = tokenizer.encode("def f("), tokenizer.encode("return")
    assert live.engine.asked[-1].prompt_ids == (tokenizer.bos_id, 260, *before, 261, *after, 262)
    assert made["choices"][0]["text"].startswith(THOUGHT)
    refused = live.http.post("/v1/completions", json=body | {"echo": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "echo")


def test_70_completions_stream_to_done_count_as_they_go_and_refuse_more_than_one_try(live):
    body = {"model": "scripted", "prompt": "a", "max_tokens": 6}
    options = {"continuous_usage_stats": True}
    text = live.http.post("/v1/completions", json=body | {"stream": True, "stream_options": options}).text
    assert text.endswith("data: [DONE]\n\n")
    counts = [json.loads(event[6:])["usage"]["completion_tokens"] for event in text.split("\n\n") if "{" in event]
    assert counts == sorted(counts)
    assert counts[-1] == 6
    assert live.http.post("/v1/completions", json=body | {"best_of": 1}).status_code == 200
    for best_of in (2, 10**6):
        refused = live.http.post("/v1/completions", json=body | {"best_of": best_of})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "best_of")


@pytest.mark.parametrize(
    ("sent", "told"), [("low", "low"), ("high", "high"), ("max", None), ("none", None), ("ultra", None)]
)
def test_72_an_effort_is_echoed_only_where_openais_client_knows_the_word(live, sent, told):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0) as client:
        made = client.responses.create(model="scripted", input="3+4?", reasoning={"effort": sent})
    assert made.reasoning.effort == told


@pytest.mark.slow
def test_77_langchains_openai_wrapper_gets_text_usage_and_tools(live, calling):
    langchain = pytest.importorskip("langchain_openai")

    def chat(server):
        return langchain.ChatOpenAI(model="scripted", api_key="-", base_url=f"{server.url}/v1", max_retries=0)

    one, tools = chat(live), chat(calling)
    message = one.invoke("3+4?")
    assert message.content == ANSWER
    total = post(live).json()["usage"]
    assert message.usage_metadata["total_tokens"] == total["total_tokens"]
    chunks = list(one.stream("3+4?", stream_usage=True))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert whole.content == ANSWER
    assert whole.usage_metadata["total_tokens"] == total["total_tokens"], "usage comes once, for it is added up"
    assert [call["args"] for call in tools.bind_tools([ADD]).invoke("3+4?").tool_calls] == [{"a": '七"}'}, {"a": 4}]
    for wrapper in (one, tools):
        wrapper.root_client.close()


def test_82_a_stranger_is_told_so_before_a_byte_of_the_body_is_read(serving, scripted, connect):
    with serving(scripted(lambda request: []), api_key=("k",)) as live, connect(live.url) as sock:
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        )
        sock.sendall(head.encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 401")
        for method in ("OPTIONS", "HEAD", "DELETE", "PUT"):
            assert live.http.request(method, PATH).status_code == 401


@pytest.mark.slow
def test_84_the_official_client_waits_as_long_as_it_is_told_and_is_then_served(
    serving, scripted, tokenizer, connect, eventually
):
    engine = scripted(lambda request: tokenizer.encode("hm ") * 1000, delay_s=0.005)
    with serving(engine, api_key=("k max_open=1",)) as live:
        headers, body = {"authorization": "Bearer k"}, json.dumps(HELLO).encode()
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer k\r\n"
        )
        first = connect(live.url)
        first.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert eventually(lambda: engine.left)
        refused = live.http.post(PATH, json=HELLO, headers=headers)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.headers["retry-after-ms"] == "1000"
        timer = threading.Timer(0.3, first.close)
        timer.start()
        began = time.monotonic()
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="k", max_retries=3) as client:
            made = client.chat.completions.create(**HELLO, max_tokens=2)
        assert time.monotonic() - began >= 1.0
        assert made.usage.completion_tokens == 2
        timer.join()


@pytest.mark.slow
def test_89_while_it_drains_newcomers_get_a_503_and_a_second_signal_ends_it_at_once(serving, scripted, tokenizer):
    engine = scripted(lambda request: tokenizer.encode("hm ") * 1000, delay_s=0.01)
    with serving(engine) as live:
        with live.http.stream("POST", PATH, json=HELLO | {"stream": True, "max_tokens": 150}) as response:
            lines = response.iter_lines()
            next(lines)
            live.server.handle_exit(15, None)
            assert not live.server.force_exit
            deadline = time.monotonic() + 10
            while live.bridge.n_open and time.monotonic() < deadline:
                newcomer = httpx.post(f"{live.url}{PATH}", json=HELLO | {"max_tokens": 1})
                if newcomer.status_code == 503:
                    break
            assert (newcomer.status_code, newcomer.json()["error"]["code"]) == (503, "server_stopping")
            assert int(newcomer.headers["retry-after"]) <= 120
            assert httpx.get(f"{live.url}/readyz").status_code == 503
            assert httpx.get(f"{live.url}/healthz").status_code == 200
            live.server.handle_exit(15, None)
            assert live.server.force_exit
