"""Requests are decoded strictly: what is not offered is refused by name."""

import json

import pytest

from sobre.serve.errors import ApiError
from sobre.serve.schema import parse_chat_request

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def parse(**fields):
    return parse_chat_request(json.dumps(HELLO | fields).encode())


def refused(body):
    with pytest.raises(ApiError) as caught:
        parse_chat_request(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert caught.value.status == 400
    assert len(json.dumps(caught.value.body())) < 2048
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tempratur": 1}, "tempratur", "unknown_field"),
        ({"unknown": None}, "unknown", "unknown_field"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported"),
        ({"logprobs": True}, "logprobs", "unsupported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported"),
        ({"thinking": {"type": "disabled"}}, "thinking", "unsupported"),
        ({"user": "me"}, "user", "unsupported"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 10**9}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"max_tokens": 2**63}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_value"),
        ({"max_tokens": "10"}, "max_tokens", "invalid_value"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_value"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_p": 2}, "top_p", "invalid_value"),
        ({"top_k": -5}, "top_k", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"seed": "x"}, "seed", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": ""}, "stop[0]", "invalid_value"),
        ({"stop": ["a", None]}, "stop[1]", "invalid_value"),
        ({"stop": "x" * 300}, "stop[0]", "invalid_value"),
        ({"stream": 1}, "stream", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_field"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_value"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_field"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x", "name": "a"}]}, "messages[0].name", "unsupported"),
        ({"messages": [{"role": "user", "content": "x", "contnt": 1}]}, "messages[0].contnt", "unknown_field"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]},
            "messages[0].content",
            "invalid_value",
        ),
        ({"model": 5}, "model", "invalid_value"),
    ],
)
def test_each_wrong_field_is_named(fields, param, code):
    error = refused(HELLO | fields)
    assert (error.param, error.code) == (param, code)
    assert param in str(error)


def test_an_unknown_field_gets_the_near_name():
    assert "'temperature'" in str(refused(HELLO | {"temperatur": 1}))
    assert "'content'" in str(refused(HELLO | {"messages": [{"role": "user", "content": "x", "contents": 1}]}))


def test_a_missing_field_is_named():
    assert refused({"model": "m"}).param == "messages"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xef\xbb\xbf{}",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        json.dumps(HELLO).encode("utf-16"),
        json.dumps(HELLO).encode() + b" trailing",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "m", "temperature": NaN}',
    ],
)
def test_what_is_no_json_object_is_refused_whatever_it_is(body):
    assert refused(body).code == "invalid_json"


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 5000, "-0.1"])
def test_numbers_beyond_all_bounds_are_refused(number):
    for field in ("temperature", "max_tokens", "seed", "n"):
        body = json.dumps(HELLO)[:-1] + f', "{field}": {number}}}'
        if (field, number) != ("seed", "-0.1"):
            assert refused(body.encode()).status == 400


def test_what_the_official_client_sends_unasked_is_accepted():
    again = {
        "role": "assistant",
        "content": "7",
        "refusal": None,
        "tool_calls": None,
        "annotations": None,
        "audio": None,
    }
    request = parse(
        messages=[*HELLO["messages"], again, {"role": "user", "content": [{"type": "text", "text": "and"}]}],
        tools=None,
        tool_choice="none",
        logprobs=False,
        presence_penalty=0.0,
        frequency_penalty=0,
        response_format={"type": "text"},
        max_tokens=None,
        temperature=None,
        n=None,
        stop=None,
        seed=None,
        stream=None,
        thinking={"type": "enabled"},
    )
    assert (request.n, request.stop, request.stream, request.answer_limit) == (1, [], False, None)
    assert [message.content for message in request.messages] == ["hello", "7", "and"]


def test_a_thought_in_the_history_reaches_the_chat_layout_under_either_name(tokenizer):
    def rendered(**thought):
        turns = [*HELLO["messages"], {"role": "assistant", "content": "7", **thought}, *HELLO["messages"]]
        return tokenizer.render([m.plain() for m in parse(messages=turns).messages], generation_prompt=True)

    assert rendered(reasoning_content="hm") == rendered(reasoning="hm") == rendered()


def test_limits_themselves_are_accepted():
    request = parse(n=8, stop=["a"] * 4, seed=-(2**63), temperature=2, top_p=1, max_completion_tokens=1)
    assert (request.n, request.seed, request.answer_limit) == (8, -(2**63), 1)
