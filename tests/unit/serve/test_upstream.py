"""Another engine behind the same API: a second server of ours as the engine, and one that does everything wrong."""

import json
import threading

import anthropic
import openai
import pytest

from sobre.app.serve import read_secret
from sobre.errors import ConfigError, RunError
from sobre.serve import replicas
from sobre.serve.command import command, wait_until_ready
from sobre.serve.config import ServeConfig

THOUGHT, ANSWER = "three plus four 🙂", "It is seven: 七 🧑‍🚀."
HELLO = {"model": "front", "messages": [{"role": "user", "content": "3+4?"}]}
PATH = "/v1/chat/completions"


def events(handler, *chunks):
    handler.send_response(200)
    handler.send_header("content-type", "text/event-stream")
    handler.end_headers()
    for chunk in chunks:
        handler.wfile.write(f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}\n\n".encode())


def delta(index=0, finish=None, **fields):
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish}]}


@pytest.mark.slow
def test_the_official_clients_see_the_same_through_another_engine(live, front):
    http, service = front(live.url)
    with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="-", max_retries=0) as client:
        made = client.chat.completions.create(**HELLO, temperature=0.5, stop="zzz", max_tokens=100, n=2)
        assert [choice.message.content for choice in made.choices] == [ANSWER] * 2
        assert made.choices[0].message.reasoning_content == THOUGHT
        own = live.http.post(PATH, json=HELLO | {"model": "scripted", "n": 2}).json()["usage"]
        assert made.usage.completion_tokens == own["completion_tokens"]
        assert made.usage.prompt_tokens == own["prompt_tokens"]
        assert made.usage.cost_usd > 0
        params = live.engine.asked[-3].params
        assert (params.temperature, params.max_tokens) == (0.5, 100)
        with client.chat.completions.stream(**HELLO) as stream:
            assert stream.get_final_completion().choices[0].message.content == ANSWER
        off = client.chat.completions.create(**HELLO, reasoning_effort="none")
        assert not hasattr(off.choices[0].message, "reasoning_content")
        assert client.responses.create(model="front", input="3+4?").output_text == ANSWER
        for wrong in ({"logprobs": True}, {"messages": [{"role": "user", "content": "x " * 300}]}):
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(**HELLO | wrong)
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="front", prompt="x")
    with anthropic.Anthropic(base_url=str(http.base_url), api_key="-", max_retries=0) as claude:
        thinking = {"type": "enabled", "budget_tokens": 50}
        said = claude.messages.create(model="front", max_tokens=100, messages=HELLO["messages"], thinking=thinking)
        assert [block.type for block in said.content] == ["thinking", "text"]
    assert service.bridge.n_open == 0


def test_a_client_that_leaves_the_front_leaves_the_engine(serving, scripted, tokenizer, front, eventually):
    slow = scripted(lambda request: tokenizer.encode("hm ") * 1000, delay_s=0.005)
    with serving(slow) as live:
        http, service = front(live.url)
        with http.stream("POST", PATH, json=HELLO | {"stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            assert eventually(lambda: slow.left)
        assert eventually(lambda: not slow.left)
        assert eventually(lambda: service.bridge.n_open == 0)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (lambda one: one.send_error(500), 502),
        (lambda one: one.send_error(503), 503),
        (lambda one: events(one, "no json"), 502),
        (lambda one: events(one, "[1]"), 502),
        (lambda one: events(one, delta(content="half")), 502),
        (lambda one: events(one, delta(content="a"), "[DONE]"), 502),
        (lambda one: events(one, {"error": {"message": "boom"}}), 502),
        (lambda one: one.connection.close(), 503),
        (lambda one: threading.Event().wait(1.5), 504),
    ],
)
@pytest.mark.slow
def test_what_goes_wrong_behind_is_said_in_the_usual_shape(front, faulty, answer, status):
    http, service = front(faulty(answer), read_timeout_s=0.5)
    response = http.post(PATH, json=HELLO)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    streamed = http.post(PATH, json=HELLO | {"stream": True}).text
    assert '"error":{' in streamed
    assert streamed.endswith("data: [DONE]\n\n")
    assert service.bridge.n_open == 0


@pytest.mark.slow
def test_either_name_of_the_thought_and_flat_errors_are_understood(front, faulty):
    def as_vllm(one):
        call = {"index": 0, "id": "c1", "function": {"name": "add", "arguments": "{"}}
        events(
            one,
            delta(role="assistant", content=""),
            delta(reasoning="hm"),
            delta(tool_calls=[call]),
            delta(tool_calls=[{"index": 0, "function": {"arguments": "}"}}]),
            delta(finish="tool_calls"),
            {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
            "[DONE]",
        )

    http, _ = front(faulty(as_vllm))
    tools = [{"type": "function", "function": {"name": "add"}}]
    body = http.post(PATH, json=HELLO | {"tools": tools}).json()
    message = body["choices"][0]["message"]
    assert (message["reasoning_content"], message["tool_calls"][0]["function"]["arguments"]) == ("hm", "{}")
    assert (body["choices"][0]["finish_reason"], body["usage"]["total_tokens"]) == ("tool_calls", 7)

    def flat(one):
        content = json.dumps({"object": "error", "message": "too long", "code": 400}).encode()
        one.send_response(400)
        one.send_header("content-length", str(len(content)))
        one.end_headers()
        one.wfile.write(content)

    http, _ = front(faulty(flat))
    response = http.post(PATH, json=HELLO)
    assert (response.status_code, response.json()["error"]["message"]) == (400, "too long")


def test_the_command_lines_name_model_port_and_context():
    assert command("vllm", "org/m", "m", 5, 100) == [
        *["vllm", "serve", "org/m", "--host", "127.0.0.1", "--port", "5"],
        *["--served-model-name", "m", "--max-model-len", "100"],
    ]
    assert command("sglang", "org/m", "m", 5, 0)[:5] == [
        "python",
        "-m",
        "sglang.launch_server",
        "--model-path",
        "org/m",
    ]
    with pytest.raises(RunError, match="no engine answers"):
        wait_until_ready("http://127.0.0.1:1", None, print)


def done(one):
    """An answer without words."""
    events(one, delta(content="a"), delta(finish="stop"), "[DONE]")


@pytest.mark.parametrize("fields", [{"continue_final_message": True}, {"prefix": True}])
def test_an_answer_that_goes_on_from_a_beginning_does_so_behind_another_engine_too(live, front, fields):
    beginning = {"role": "assistant", "content": "It is"}
    if "prefix" in fields:
        beginning, fields = beginning | fields, {}
    asked = {"messages": [*HELLO["messages"], beginning], **fields}
    http, _ = front(live.url)
    for client, model in ((live.http, "scripted"), (http, "front")):
        assert client.post(PATH, json={"model": model} | asked).status_code == 200
    own, behind = live.engine.asked[-2:]
    assert behind.prompt_ids == own.prompt_ids


def test_a_pattern_reaches_the_engine_under_the_name_that_it_reads(live, front):
    http, _ = front(live.url)
    form = {"type": "regex", "pattern": "[0-9]{3}"}
    assert http.post(PATH, json=HELLO | {"response_format": form}).status_code == 200
    assert live.engine.asked[-1].mask is not None
    refused = http.post(PATH, json=HELLO | {"response_format": form | {"pattern": "("}})
    assert (refused.status_code, "unclosed group" in refused.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize(
    ("owner", "sent"),
    [
        ("vllm", {"structured_outputs": {"regex": "a|b"}}),
        ("sglang", {"regex": "a|b"}),
        ("llamacpp", None),
        (None, None),
    ],
)
def test_a_pattern_has_the_name_that_the_engine_reads_or_is_refused(front, faulty, owner, sent):
    bodies = []

    def answer(one):
        bodies.append(json.loads(one.body))
        done(one)

    http, _ = front(faulty(answer, owner))
    answered = http.post(PATH, json=HELLO | {"structured_outputs": {"regex": "a|b"}})
    if sent is None:
        assert (answered.status_code, answered.json()["error"]["code"], bodies) == (400, "unsupported", [])
        return
    assert answered.status_code == 200
    assert {name: bodies[0][name] for name in ("structured_outputs", "regex") if name in bodies[0]} == sent


def test_each_key_has_a_salt_of_its_own_in_the_cache_of_the_engine_behind(live, front):
    http, _ = front(live.url, api_key=("k1", "k2"))

    def kept_under(key, **fields):
        asked = http.post(PATH, json=HELLO | {"max_tokens": 1} | fields, headers={"authorization": f"Bearer {key}"})
        assert asked.status_code == 200
        return live.engine.asked[-1].cache_key

    first, second = kept_under("k1"), kept_under("k2")
    assert first == kept_under("k1") != second
    assert all(len(bytes.fromhex(salt.removeprefix(":"))) == 32 for salt in (first, second)), "an HMAC, no key"
    salted = kept_under("k1", cache_salt="mine")
    assert salted == kept_under("k1", cache_salt="mine") not in (first, kept_under("k2", cache_salt="mine"))
    alone, _ = front(live.url)
    alone.post(PATH, json=HELLO | {"max_tokens": 1})
    assert live.engine.asked[-1].cache_key == "", "without keys there is nobody to keep apart"


@pytest.mark.parametrize(("owner", "takes"), [("vllm", True), ("sglang", True), ("llamacpp", False), (None, False)])
def test_salts_go_to_engines_that_take_them(front, faulty, owner, takes):
    bodies = []

    def answer(one):
        bodies.append(json.loads(one.body))
        done(one)

    http, _ = front(faulty(answer, owner), api_key=("k1",))
    key = {"authorization": "Bearer k1"}
    assert http.post(PATH, json=HELLO, headers=key).status_code == 200
    assert ("cache_salt" in bodies[0]) == takes
    explicit = http.post(PATH, json=HELLO | {"cache_salt": "mine"}, headers=key)
    assert explicit.status_code == (200 if takes else 400)
    assert takes or explicit.json()["error"]["param"] == "cache_salt"


def test_a_server_before_one_engine_is_ready_while_that_engine_is(serving, scripted, front, eventually, monkeypatch):
    monkeypatch.setattr(replicas, "CHECK_S", 0.05)
    with serving(scripted(lambda request: [5])) as live:
        http, _ = front(live.url)
        assert http.get("/readyz").status_code == 200
        live.bridge.failure = RuntimeError("dead")
        assert eventually(lambda: http.get("/readyz").status_code == 503)
        live.bridge.failure = None
        assert eventually(lambda: http.get("/readyz").status_code == 200)
    assert eventually(lambda: http.get("/readyz").status_code == 503)
    assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize("flags", [{"temperature": 0.1}, {"top_p": 0.5}])
def test_flags_that_another_engine_never_hears_of_are_refused(flags):
    ServeConfig(model=("m",), **flags)
    with pytest.raises(ConfigError, match="temperature and top_p are for our own engine; engine=vllm"):
        ServeConfig(model=("m",), engine=("vllm",), **flags)
    with pytest.raises(ConfigError, match="salt_file is for other engines"):
        ServeConfig(model=("m",), salt_file="secret")


def test_a_secret_of_salts_is_read_from_its_file_or_drawn(tmp_path):
    path = tmp_path / "secret"
    path.write_text("x" * 32 + "\n")
    assert read_secret(str(path)) == b"x" * 32
    assert len(read_secret("")) == 32
    assert read_secret("") != read_secret("")
    path.write_text("x" * 31)
    with pytest.raises(ConfigError, match="holds 31 characters"):
        read_secret(str(path))
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        read_secret(str(tmp_path / "none"))
