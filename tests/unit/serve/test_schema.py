"""Requests are decoded strictly: what is not offered is refused by name."""

import json

import pytest

from sobre.serve.chat_schema import parse_chat_request
from sobre.serve.decode import read_object
from sobre.serve.errors import ApiError

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "hello"}
HELLO = {"model": "m", "messages": [USER]}


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
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_field"),
        ({"tools": []}, "tools", "invalid_value"),
        ({"tools": [ADD, ADD]}, "tools", "invalid_value"),
        ({"tools": [ADD] * 129}, "tools", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "f" * 65}}]}, "tools[0].function.name", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "maybe"}, "tool_choice", "invalid_value"),
        (
            {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
            "tool_choice",
            "invalid_value",
        ),
        ({"tools": [ADD], "response_format": {"type": "json_object"}}, "response_format", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 151936}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": "5"}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": True}, "top_logprobs", "invalid_value"),
        ({"logit_bias": {"abc": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1e9": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": "nan"}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {str(i): 1 for i in range(2000)}}, "logit_bias", "invalid_value"),
        ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
        ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"min_p": 2}, "min_p", "invalid_value"),
        ({"reasoning_effort": True}, "reasoning_effort", "invalid_value"),
        ({"reasoning_effort": 7}, "reasoning_effort", "invalid_value"),
        ({"reasoning_effort": ""}, "reasoning_effort", "invalid_value"),
        ({"thinking": {"type": "maybe"}}, "thinking.type", "invalid_value"),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "high"}, "reasoning_effort", "invalid_value"),
        ({"thinking": {"type": "disabled"}, "thinking_token_budget": 5}, "thinking_token_budget", "invalid_value"),
        ({"thinking_token_budget": -2}, "thinking_token_budget", "invalid_value"),
        ({"thinking_token_budget": 10**12}, "thinking_token_budget", "invalid_value"),
        ({"thinking_token_budget": True}, "thinking_token_budget", "invalid_value"),
        ({"reasoning": {"effort": "low", "efort": 1}}, "reasoning.efort", "unknown_field"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize", "unknown_field"),
        ({"chat_template": "{{ x }}"}, "chat_template", "unknown_field"),
        ({"ignored": ["x"]}, "ignored", "unknown_field"),
        ({"best_of": 10**6}, "best_of", "unknown_field"),
        ({"prediction": {"type": "content"}}, "prediction", "unsupported"),
        ({"user": "x" * 2**20}, "user", "invalid_value"),
        ({"metadata": {"a": "x" * 2**20}}, "metadata", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 10**9}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"max_tokens": 2**63}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_value"),
        ({"max_tokens": "10"}, "max_tokens", "invalid_value"),
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
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "missing_field"),
        (
            {"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]},
            "messages[0].tool_call_id",
            "invalid_value",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_field"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "missing_field"),
        ({"messages": [{"role": "user", "content": "x"}] * 10_001}, "messages", "invalid_value"),
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


def test_labels_are_accepted_and_named():
    request = parse(user="me", metadata={"a": "b"}, messages=[{"role": "user", "content": "x", "name": "me"}])
    assert request.ignored == ("user", "metadata", "messages[0].name")


@pytest.mark.parametrize(
    ("fields", "on", "limit"),
    [
        ({}, True, 50),
        ({"thinking": {"type": "enabled"}}, True, 50),
        ({"thinking": {"type": "disabled"}}, False, None),
        ({"reasoning_effort": "none"}, False, None),
        *(({"reasoning_effort": word}, True, n) for word, n in [("minimal", 6), ("low", 12), ("medium", 25)]),
        *(({"reasoning_effort": word}, True, n) for word, n in [("high", 50), ("xhigh", 50), ("max", 75)]),
        ({"reasoning_effort": "ultra"}, True, 75),
        ({"reasoning": {"effort": "low"}}, True, 12),
        ({"reasoning": {"max_tokens": 7, "exclude": True}}, True, 7),
        ({"reasoning": {"enabled": False}}, False, None),
        ({"chat_template_kwargs": {"thinking": True, "enable_thinking": True}}, True, 50),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False, None),
        ({"thinking_token_budget": 9, "reasoning_effort": "low"}, True, 9),
        ({"thinking_token_budget": 0}, False, None),
        ({"thinking_token_budget": -1}, True, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 3}}, True, 3),
    ],
)
def test_every_way_to_say_how_long_to_think_is_understood(fields, on, limit):
    request = parse(**fields)
    assert request.thinking.on is on
    if on:
        assert request.thinking.limit(100) == limit
    assert request.include_reasoning is (fields.get("reasoning", {}).get("exclude") is not True)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model": "m", "seed": 1, "seed": 2}', "seed"),
        (b'{"model": "m", "seed": 1, "se\\u0065d": 1}', "seed"),
        (b'{"model": "m", "tools": [{"a": {"b": [{"c": 1, "c": 1}]}}]}', "c"),
        (b'{"__proto__": 1, "__proto__": 1}', "__proto__"),
    ],
)
def test_a_name_that_comes_twice_is_refused_wherever_it_is(body, name):
    with pytest.raises(ApiError, match="comes twice in one object") as refused:
        read_object(body)
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, name, "duplicate_field")


def test_a_name_may_come_again_in_another_object_and_what_is_read_stays_as_it_was():
    body = b'{"a": {"a": [{"a": 1.5}, {"a": 12345678901234567890}]}, "b": "\xf0\x9f\x99\x82"}'
    assert read_object(body) == {"a": {"a": [{"a": 1.5}, {"a": 12345678901234567890}]}, "b": "🙂"}


def test_a_hundred_thousand_names_and_one_of_them_twice_take_no_time_to_speak_of():
    names = ",".join(f'"k{i}":0' for i in range(100_000))
    with pytest.raises(ApiError, match="'k99999' comes twice"):
        read_object(f'{{{names},"k99999":0}}'.encode())


@pytest.mark.parametrize("name", ["__proto__", "constructor", "prototype", "__class__"])
def test_names_that_mean_something_elsewhere_are_unknown_fields_here(name):
    for body in ({name: {"stream": True}}, {"thinking": {"type": "enabled", name: 1}}):
        with pytest.raises(ApiError, match="Unknown field") as refused:
            parse(**body)
        assert refused.value.code == "unknown_field"
        assert refused.value.param.endswith(name)


def test_thoughts_that_cannot_be_read_are_named():
    details = [{"type": "reasoning.text", "text": "hm"}, {"type": "reasoning.encrypted", "data": "xyz"}]
    turn = {"role": "assistant", "content": "7", "reasoning_details": details}
    asked = parse(messages=[USER, turn, USER | {"name": "ann"}])
    assert asked.ignored == ("messages[2].name", "messages[1].reasoning_details[1]")
    assert asked.messages[1].thought == "hm"
    asked = parse(messages=[USER | {"name": "ann"}] * 7)
    assert asked.ignored == (*(f"messages[{i}].name" for i in range(4)), "and 3 more")
