"""More of the conformance list, by number: thoughts, stops, and the bodies of clients (map: test_conformance.py)."""

import asyncio
import itertools
import json
import threading

import openai
import pytest
from openai.types.chat import ChatCompletion

from sobre.errors import CheckpointError
from sobre.serve.answer import Answer
from sobre.serve.chat_schema import parse_chat_request
from sobre.serve.errors import ApiError
from sobre.serve.events import AnswerReader

HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}]}
PATH = "/v1/chat/completions"
THOUGHT, ANSWER = "three plus four 🙂", "It is seven: 七 🧑‍🚀."
TIME = {"name": "get_time", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def post(live, **fields):
    return live.http.post(PATH, json=HELLO | fields)


def message_of(live, **fields):
    return post(live, **fields).json()["choices"][0]["message"]


def chunks_of(response):
    events = [event.removeprefix("data: ") for event in response.text.split("\n\n") if event.startswith("data: {")]
    return [json.loads(event) for event in events]


def joined(chunks, name):
    return "".join(chunk["choices"][0]["delta"].get(name) or "" for chunk in chunks if chunk["choices"])


@pytest.fixture(scope="module")
def spelt(tokenizer):
    """One token a byte."""
    table = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    return lambda text: [table[bytes([byte])] for byte in text.encode()]


@pytest.fixture
def by_hand(serving, scripted):
    """`by_hand(ids)`: a server whose engine writes a token each time `engine.gate` is released."""

    class ByHand(scripted):
        def step(self):
            self.gate.acquire()
            return super().step()

    contexts, engines = [], []

    def start(ids, **settings):
        engine = ByHand(lambda request: list(ids), max_context=4000)
        engine.gate = threading.Semaphore(0)
        engines.append(engine)
        contexts.append(serving(engine, **settings))
        return contexts[-1].__enter__()

    yield start
    for engine, context in zip(engines, contexts, strict=True):
        engine.gate.release(1_000_000)
        context.__exit__(None, None, None)


def test_11_each_token_reaches_the_client_before_the_engine_writes_the_next(by_hand, spelt, tokenizer):
    """What 50 ms of buffering would be, without a clock: the next token does not exist yet when this one is read."""
    live = by_hand([*spelt("abc"), tokenizer.think_close_id, *spelt("def"), tokenizer.eos_id])
    with live.http.stream("POST", PATH, json=HELLO | {"stream": True}) as response:
        lines = (line for line in response.iter_lines() if line.startswith("data: {"))

        def delta():
            return json.loads(next(lines)[6:])["choices"][0]["delta"]

        assert delta()["role"] == "assistant"
        for letter in "abc":
            live.engine.gate.release()
            assert delta()["reasoning_content"] == letter
        live.engine.gate.release()  # the tag, which shows nothing
        for letter in "def":
            live.engine.gate.release()
            assert delta()["content"] == letter
        live.engine.gate.release()
        assert delta()["content"] == ""


@pytest.fixture
def untagged(tokenizer, monkeypatch):
    """The tokenizer as one whose vocabulary has no tags of a thought."""

    def missing(self):
        raise CheckpointError("no such token")

    for name in ("think_open_id", "think_close_id"):
        monkeypatch.setattr(type(tokenizer), name, property(missing))
    return tokenizer


def read(tokenizer, ids, prompt, stop=()):
    """(thought, answer) of these tokens, and the reader."""
    reader, text = AnswerReader(tokenizer, prompt, stop), {"reasoning": "", "content": ""}
    for token_id in ids:
        if not reader.stopped:
            for delta in reader.push(token_id):
                text[delta.kind] += delta.text
    for delta in reader.close():
        text[delta.kind] += delta.text
    return text["reasoning"], text["content"], reader


WRITTEN = [
    (
        "<think>\nhm < </thin > 七\n</think>\nIt is </think> and <think>.",
        "hm < </thin > 七",
        "It is </think> and <think>.",
    ),
    (" \n<think>hm</think>7", "hm", "7"),
    ("<think>\n\n</think>\n\n7", "", "\n7"),
    ("<thinker> 7", "", "<thinker> 7"),
    ("7 <think>x</think>", "", "7 <think>x</think>"),
    ("<think>never ends </thi", "never ends </thi", ""),
    ("<thi", "", "<thi"),
]


@pytest.mark.parametrize(("text", "thought", "answer"), WRITTEN)
def test_20_tags_that_are_no_tokens_never_leak_wherever_tokens_cut_them(untagged, spelt, text, thought, answer):
    whole, cut = untagged.encode(text), spelt(text)
    assert len(cut) >= len(whole)
    for ids in (whole, cut):
        assert read(untagged, ids, untagged.encode("<|assistant|>\n"))[:2] == (thought, answer)


def test_20_a_thought_that_the_prompt_has_opened_ends_at_any_cut_and_its_tokens_are_counted(untagged, spelt):
    prompt = untagged.encode("what is <think>?\n<think>\n")
    for at in range(len("</think>") + 1):
        ids = [*spelt("hm\n" + "</think>"[:at]), *spelt("</think>"[at:] + "\n7")]
        thought, answer, reader = read(untagged, ids, prompt, stop=["hm"])
        assert (thought, answer) == ("hm", "7")
        assert (reader.n_reasoning, reader.n_tokens) == (len("hm\n</think>"), len("hm\n</think>\n7"))


def test_21_a_tag_that_is_only_text_ends_and_opens_nothing(serving, scripted, spelt, tokenizer):
    ids = [*spelt("it says </think> here\n"), tokenizer.think_close_id, *spelt("\n`</think>` and <think>.")]
    with serving(scripted(lambda request: [*ids, tokenizer.eos_id], max_context=4000)) as live:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        for messages in (
            [{"role": "user", "content": "<think>x</think> 3+4?</think>"}],
            [
                *HELLO["messages"],
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": "</think>"},
            ],
        ):
            said = message_of(live, messages=messages)
            assert said["reasoning_content"] == "it says </think> here"
            assert said["content"] == "`</think>` and <think>."
            chunks = chunks_of(post(live, messages=messages, stream=True))
            assert joined(chunks, "reasoning_content") == said["reasoning_content"]
            assert joined(chunks, "content") == said["content"]


SWITCHES = {
    "thinking.type": ({"thinking": {"type": "enabled"}}, {"thinking": {"type": "disabled"}}),
    "reasoning.enabled": ({"reasoning": {"enabled": True}}, {"reasoning": {"enabled": False}}),
    "chat_template_kwargs.thinking": (
        {"chat_template_kwargs": {"thinking": True}},
        {"chat_template_kwargs": {"thinking": False}},
    ),
    "chat_template_kwargs.enable_thinking": (
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ),
    "reasoning_effort": ({"reasoning_effort": "low"}, {"reasoning_effort": "none"}),
    "reasoning.effort": ({"reasoning": {"effort": "low"}}, {"reasoning": {"effort": "none"}}),
}
BUDGETS = {
    "thinking.budget_tokens": {"thinking": {"type": "enabled", "budget_tokens": 7}},
    "reasoning.max_tokens": {"reasoning": {"max_tokens": 7}},
    "thinking_token_budget": {"thinking_token_budget": 7},
}


def merged(*some):
    """One body of several, their objects merged."""
    body = {}
    for fields in some:
        for name, value in fields.items():
            body[name] = body[name] | value if isinstance(value, dict) and name in body else value
    return body


def parsed(*fields):
    return parse_chat_request(json.dumps(HELLO | merged(*fields)).encode())


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(SWITCHES, 2)))
def test_25_two_ways_of_saying_whether_to_think_must_agree(one, other):
    for yes, no in ((SWITCHES[one][0], SWITCHES[other][1]), (SWITCHES[other][0], SWITCHES[one][1])):
        with pytest.raises(ApiError) as caught:
            parsed(yes, no)
        assert caught.value.status == 400
        assert one in str(caught.value)
        assert other in str(caught.value)
    assert parsed(SWITCHES[one][0], SWITCHES[other][0]).thinking.on
    assert not parsed(SWITCHES[one][1], SWITCHES[other][1]).thinking.on


@pytest.mark.parametrize("budget", BUDGETS)
def test_25_a_budget_goes_before_an_effort_and_contradicts_another_and_no_thought(budget):
    for effort in ({"reasoning_effort": "max"}, {"reasoning": {"effort": "max"}}):
        assert parsed(BUDGETS[budget], effort).thinking.limit(1000) == 7
    for other in set(BUDGETS) - {budget}:
        wrong = json.loads(json.dumps(BUDGETS[other]).replace("7", "8"))
        with pytest.raises(ApiError, match="contradict"):
            parsed(BUDGETS[budget], wrong)
        assert parsed(BUDGETS[budget], BUDGETS[other]).thinking.limit(1000) == 7
    with pytest.raises(ApiError, match="send one of them"):
        parsed(BUDGETS[budget], {"chat_template_kwargs": {"thinking": False}})
    for name in ("reasoning_effort", "reasoning"):
        with pytest.raises(ApiError) as caught:
            parsed(BUDGETS[budget], {name: {"effort": True} if name == "reasoning" else True})
        assert caught.value.param == ("reasoning.effort" if name == "reasoning" else name)


def test_30_a_thought_of_white_space_comes_as_it_was_written(serving, scripted, spelt, tokenizer):
    ids = [*spelt(" \n\t \n"), tokenizer.think_close_id, *spelt("\n7"), tokenizer.eos_id]
    with serving(scripted(lambda request: list(ids))) as live:
        whole = post(live).json()
        assert whole["choices"][0]["message"]["reasoning_content"] == " \n\t "
        assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 6
        assert joined(chunks_of(post(live, stream=True)), "reasoning_content") == " \n\t "


@pytest.mark.parametrize(
    ("stop", "content", "by"),
    [
        (["three"], ANSWER, None),
        (["plus", "seven"], "It is ", "seven"),
        ([" seven", "seven"], "It is", " seven"),
        (["七 🧑‍🚀"], "It is seven: ", "七 🧑‍🚀"),
        (["🧑‍🚀.x"], ANSWER, None),
        ("It", "", "It"),
    ],
)
def test_57_stops_are_looked_for_in_the_answer_alone_and_never_returned(live, stop, content, by):
    choice = post(live, stop=stop).json()["choices"][0]
    assert choice["message"]["reasoning_content"] == THOUGHT
    assert choice["message"]["content"] == content
    assert (choice["finish_reason"], choice.get("stop_reason")) == ("stop", by)
    chunks = chunks_of(post(live, stop=stop, stream=True))
    assert joined(chunks, "content") == content
    assert chunks[-1]["choices"][0].get("stop_reason") == by
    assert post(live, stop=["a"] * 5).json()["error"]["param"] == "stop"


def test_72_the_thought_streams_in_its_own_events_and_storing_is_answered_with_no(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0) as client:
        events = list(client.responses.create(model="scripted", input="3+4?", stream=True, store=False))
        told = client.responses.with_raw_response.create(model="scripted", input="3+4?", store=True)
    deltas = [event for event in events if event.type == "response.reasoning_text.delta"]
    (done,) = [event for event in events if event.type == "response.reasoning_text.done"]
    assert len(deltas) > 1
    assert "".join(event.delta for event in deltas) == done.text == THOUGHT
    assert {(event.item_id, event.output_index, event.content_index) for event in deltas} == {(done.item_id, 0, 0)}
    assert events[0].response.store is False
    assert events[-1].response.store is False
    assert told.parse().store is False
    assert told.headers["x-ignored-params"] == "store"


def test_76_headers_of_the_official_client_are_heard_and_bodies_are_its_own_type(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0) as client:
        headers = {"x-request-id": "mine-7", "x-request-timeout-s": "50"}
        raw = client.chat.completions.with_raw_response.create(**HELLO, extra_headers=headers)
        assert raw.headers["x-request-id"] == "mine-7"
        assert raw.parse().id == "chatcmpl-mine-7"
        assert raw.parse()._request_id == "mine-7"
        with pytest.raises(openai.BadRequestError, match="x-request-timeout-s"):
            client.chat.completions.create(**HELLO, extra_headers={"x-request-timeout-s": "soon"})

    async def same():
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0) as client:
            return await client.chat.completions.with_raw_response.create(**HELLO, extra_headers=headers)

    assert asyncio.run(same()).headers["x-request-id"] == "mine-7"
    for body in ({}, {"n": 3}, {"max_tokens": 3}, {"reasoning_effort": "none"}):
        made = ChatCompletion.model_validate(post(live, **body).json(), strict=True)
        assert made.choices[0].message.role == "assistant"


OPEN_WEBUI = {
    "stream": True,
    "model": "scripted",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "3+4?"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": [{"type": "text", "text": "and 5?"}]},
    ],
    "temperature": 0.7,
    "top_p": 0.9,
    "min_p": 0.05,
    "max_tokens": 128,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "reasoning_effort": "medium",
    "seed": 42,
    "stop": ["###"],
    "logit_bias": {"5": -1},
    "response_format": {"type": "text"},
    "stream_options": {"include_usage": True},
    "tools": [{"type": "function", "function": TIME}],
}
OPEN_WEBUI_TASK = {
    "model": "scripted",
    "messages": [{"role": "user", "content": "Suggest a title."}],
    "stream": False,
    "max_tokens": 1000,
}
OPEN_WEBUI_CONTINUE = {
    "stream": True,
    "model": "scripted",
    "messages": [*HELLO["messages"], {"role": "assistant", "content": "It is", "reasoning_content": "hm"}],
    "continue_final_message": True,
    "add_generation_prompt": False,
}
CHAT_UI = {
    "model": "scripted",
    "messages": [
        {"role": "system", "content": ""},
        {"role": "user", "content": "3+4?"},
        {"role": "assistant", "content": "7", "reasoning_content": "three plus four"},
        {"role": "user", "content": "and 5?"},
    ],
    "stream": True,
    "max_tokens": 128,
    "stop": ["</s>"],
    "temperature": 0.7,
    "top_p": 0.95,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "reasoning_effort": "high",
}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": '{"city": "Paris"}'}}
CHAT_UI_TOOLS = {
    "model": "scripted",
    "stream": True,
    "tools": [{"type": "function", "function": TIME | {"description": "the time"}}],
    "tool_choice": "auto",
    "messages": [
        *HELLO["messages"],
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ],
}
HARNESS = {
    "model": "scripted",
    "messages": CHAT_UI_TOOLS["messages"],
    "tools": CHAT_UI_TOOLS["tools"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "thinking": {"type": "enabled"},
    "reasoning_effort": "max",
    "max_tokens": 128,
}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (OPEN_WEBUI, {"x-openwebui-user-name": "ann", "x-openwebui-chat-id": "1"}),
        (OPEN_WEBUI_TASK, {}),
        (OPEN_WEBUI_CONTINUE, {}),
        (CHAT_UI, {"chatui-conversation-id": "1", "x-use-cache": "false"}),
        (CHAT_UI_TOOLS, {"chatui-conversation-id": "1", "x-use-cache": "false"}),
        (HARNESS, {"accept": "text/event-stream"}),
    ],
    ids=[
        "Open WebUI",
        "Open WebUI's titles",
        "Open WebUI's continue",
        "chat-ui",
        "chat-ui's tools",
        "DeepSeek's harness",
    ],
)
def test_77_bodies_of_chat_pages_are_answered_with_a_thought_that_they_show(
    serving, scripted, answer_ids, body, headers
):
    """As Open WebUI 0.12.4, chat-ui of August 2026 and deepseek-harness 0.1.1 send them, optional fields filled in."""
    with serving(scripted(lambda request: answer_ids(THOUGHT, ANSWER), max_context=4000)) as live:
        response = live.http.post(PATH, json=body, headers=headers)
        assert response.status_code == 200, response.text
        assert "x-ignored-params" not in response.headers
        if not body["stream"]:
            assert response.json()["choices"][0]["message"]["content"] == ANSWER
            return
        chunks = chunks_of(response)
        shown = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
        thought = "".join(one.get("reasoning_content") or one.get("reasoning") or "" for one in shown)
        text = "".join(one.get("content") or "" for one in shown)
        if body is OPEN_WEBUI_CONTINUE:  # it goes on inside its answer
            assert (thought, text.startswith("three plus four")) == ("", True)
        else:
            assert (thought, text) == (THOUGHT, ANSWER)
        assert sum(bool(chunk.get("usage")) for chunk in chunks) == ("stream_options" in body)


def test_86_a_client_that_leaves_after_any_token_leaves_nothing(by_hand, spelt, tokenizer, connect, eventually):
    """Headers sent, the first token, before and after `</think>`, the last token: each in turn."""
    ids = [*spelt("ab\n"), tokenizer.think_close_id, *spelt("\ncd"), tokenizer.eos_id]
    live = by_hand(ids)
    body = json.dumps(HELLO | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for n in range(len(ids) + 1):
        sock = connect(live.url)
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        said = b""
        while b'"role"' not in said:
            said += sock.recv(65536)
        for left in range(len(ids) - 1, len(ids) - 1 - n, -1):
            live.engine.gate.release()
            assert eventually(lambda left=left: sum(map(len, live.engine.left.values())) == left)
        sock.close()
        assert eventually(lambda: live.bridge.n_open == 0), n
        live.engine.gate.release()  # the step that it may be in
        assert eventually(lambda: not live.engine.left)
        while live.engine.gate.acquire(blocking=False):
            pass
    assert len(live.engine.aborted) >= len(ids) - 1  # but for those whose last token was written meanwhile
    live.engine.gate.release(100)
    assert post(live).json()["choices"][0]["message"]["content"] == "cd"


@pytest.mark.parametrize("stream", [True, False])
def test_86_a_client_that_leaves_between_the_last_token_and_the_usage_leaves_nothing(
    live, connect, eventually, monkeypatch, stream
):
    counting, gone, real = threading.Event(), threading.Event(), Answer.usage

    def slow(answer):
        counting.set()
        assert gone.wait(10)
        return real(answer)

    monkeypatch.setattr(Answer, "usage", slow)
    options = {"stream_options": {"include_usage": True}} if stream else {}
    body = json.dumps(HELLO | {"stream": stream} | options).encode()
    sock = connect(live.url)
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert counting.wait(10)
    sock.close()
    gone.set()
    assert eventually(lambda: live.bridge.n_open == 0)
    monkeypatch.undo()
    assert message_of(live)["content"] == ANSWER
