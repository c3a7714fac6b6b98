"""Another engine behind the same API: a second server of ours as the engine, and one that does everything wrong."""

import json
import threading

import anthropic
import openai
import pytest

from sobre.errors import RunError
from sobre.serve.command import command, wait_until_ready

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
