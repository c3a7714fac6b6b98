"""Services that `sobre eval` asks: both dialects, what is left out, waits, and replies that no failure loses."""

import email.utils
import json
import threading
import time
from dataclasses import replace
from itertools import count

import pytest

from sobre.app import eval as verb
from sobre.errors import ConfigError, DataError, RunError
from sobre.eval.answer import Reply, Sampling
from sobre.eval.kept import Kept
from sobre.eval.service import Endpoint, read_openai, wait_s

HOW = Sampling(max_tokens=50, temperature=0.6, top_p=0.9, seed=3)


def test_a_service_is_asked_in_its_dialect(service, openai_answer) -> None:
    seen = []

    def answer(path: str, headers: dict, body: dict) -> tuple[int, object]:
        seen.append((path, headers, body))
        if path.endswith("messages"):
            blocks = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": body["messages"][0]["content"]}]
            return 200, {"content": blocks, "stop_reason": "max_tokens", "usage": {"output_tokens": 9}}
        return 200, openai_answer(f"{body['messages'][0]['content']}{body['seed']}", "hm")

    url = service(answer)
    found = Endpoint(url, "m", "secret").answer(["a", "b"], 2, HOW)
    assert [[reply.text for reply in group] for group in found] == [
        ["hm\n</think>\na3", "hm\n</think>\na4"],
        ["hm\n</think>\nb5", "hm\n</think>\nb6"],
    ]
    assert {reply.n_tokens for group in found for reply in group} == {7}
    assert seen[0][1]["Authorization"] == "Bearer secret"
    assert {key: seen[0][2][key] for key in ("model", "max_tokens", "temperature", "top_p")} == {
        "model": "m",
        "max_tokens": 50,
        "temperature": 0.6,
        "top_p": 0.9,
    }
    ((reply,),) = Endpoint(url, "m", "secret", "anthropic").answer(["a"], 1, HOW)
    assert reply == Reply("hm\n</think>\na", False, 9)
    assert seen[-1][0] == "/v1/messages"
    assert "secret" not in repr(Endpoint(url, "m", "secret"))


def test_a_thought_is_read_under_either_name(openai_answer) -> None:
    completion = openai_answer("5", "hm")
    message = completion["choices"][0]["message"]
    assert read_openai(completion).text == "hm\n</think>\n5"
    message["reasoning"], message["reasoning_content"] = message["reasoning_content"], None
    assert read_openai(completion).text == "hm\n</think>\n5"
    del message["reasoning"], message["reasoning_content"]
    assert read_openai(completion).text == "5"


@pytest.mark.parametrize(
    ("status", "found", "message"),
    [
        (401, {"error": "no key"}, "answers 401: .*no key"),
        (200, {"x": 1}, "no chat completion"),
        (200, [], "list, not"),
    ],
)
def test_a_service_that_fails_stops_the_evaluation(service, status: int, found: object, message: str) -> None:
    url = service(lambda *_: (status, found))
    with pytest.raises(RunError, match=message):
        Endpoint(url, "m").answer(["a"], 1, HOW)
    with pytest.raises(RunError, match="cannot be asked"):
        Endpoint("http://127.0.0.1:1/v1", "m").answer(["a"], 1, HOW)


def test_what_a_service_refuses_is_left_out_and_its_own_fields_are_sent() -> None:
    endpoint = Endpoint("u", "m", omit=("temperature", "seed"), limit_field="max_completion_tokens", extra={"x": [1]})
    messages = [{"role": "user", "content": "a"}]
    sent = {"model": "m", "messages": messages, "max_completion_tokens": 50, "top_p": 0.9, "x": [1]}
    assert endpoint.body("a", HOW, 7) == sent
    assert endpoint.body("a", replace(HOW, max_tokens=0), 7)["max_completion_tokens"] == 1024
    for name in ("top_p", "stream"):
        with pytest.raises(ConfigError, match=f"extra_body names {name}"):
            replace(endpoint, extra={name: 1}).body("a", HOW, 7)
    assert replace(endpoint, extra={"seed": 1}).body("a", HOW, 7)["seed"] == 1


@pytest.mark.parametrize(
    ("thinking", "openai", "anthropic"),
    [
        ("auto", {}, {}),
        ("on", {"chat_template_kwargs": {"thinking": True, "enable_thinking": True}}, {"type": "adaptive"}),
        ("off", {"chat_template_kwargs": {"thinking": False, "enable_thinking": False}}, {"type": "disabled"}),
        (
            300,
            {"chat_template_kwargs": {"thinking": True, "enable_thinking": True}, "thinking_token_budget": 300},
            {"type": "enabled", "budget_tokens": 300},
        ),
    ],
)
def test_a_service_is_told_whether_to_think_in_its_dialect(thinking, openai, anthropic) -> None:
    always = {"model", "messages", "max_tokens", "temperature", "top_p", "seed"}
    for api, told in (("openai", openai), ("anthropic", {"thinking": anthropic} if anthropic else {})):
        body = Endpoint("u", "m", api=api).body("a", replace(HOW, thinking=thinking), 7)
        assert {name: value for name, value in body.items() if name not in always} == told


def test_a_wait_is_as_long_as_the_service_says_and_never_silent(service, openai_answer) -> None:
    statuses, told = iter([429, 529, 200]), []
    url = service(lambda *_: (next(statuses), openai_answer("yes"), {"Retry-After": "0"}))
    ((reply,),) = Endpoint(url, "m", waits=2, tell=told.append).answer(["a"], 1, HOW)
    assert reply.text == "yes"
    assert told == [
        f"{url}/chat/completions answers 429: asked again in 0 s (1 of 2 times)",
        f"{url}/chat/completions answers 529: asked again in 0 s (2 of 2 times)",
    ]
    busy = service(lambda *_: (503, "busy", {"Retry-After": "0"}))
    with pytest.raises(RunError, match='answers 503 after 1 waits: "busy"'):
        Endpoint(busy, "m", waits=1, tell=told.append).answer(["a"], 1, HOW)
    with pytest.raises(RunError, match="answers 503: "):
        Endpoint(busy, "m").answer(["a"], 1, HOW)
    assert len(told) == 3


def test_how_long_is_read_from_seconds_or_a_date() -> None:
    assert [wait_s(None, n, "x") for n in range(4)] == [1, 2, 4, 8]
    assert wait_s("2.5", 3, "x") == 2.5
    assert 50 < wait_s(email.utils.formatdate(time.time() + 120, usegmt=True), 0, "x") <= 120
    assert wait_s(email.utils.formatdate(time.time() - 60, usegmt=True), 0, "x") == 0
    with pytest.raises(RunError, match="x, and asks for 3,600 s of patience; at most 600 are waited"):
        wait_s("3600", 0, "x")
    with pytest.raises(RunError, match="'soon' is neither seconds nor a date"):
        wait_s("soon", 0, "x")


def test_a_failure_ends_the_waits_of_the_others(service) -> None:
    waiting = threading.Event()

    def answer(path: str, headers: dict, body: dict) -> tuple:
        if body["messages"][0]["content"] == "a":
            waiting.set()
            return 429, {}, {"Retry-After": "500"}
        waiting.wait(60)
        return 401, "no key"

    with pytest.raises(RunError, match="401"):  # at once; the time limit of the tests sees a wait
        Endpoint(service(answer), "m", waits=1, tell=lambda _: None).answer(["a", "b"], 1, HOW)


@pytest.fixture
def problems(tmp_path):
    """Three problems in a file, asked by these flags; the result goes to eval.json."""
    rows = [{"id": f"q{i}", "prompt": f"q{i} ?", "answer": "2"} for i in range(3)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--model", "m", "--tasks", f"mine={tmp_path / 'mine.jsonl'}", "--k", "2", "--waits", "0"]
    return [*flags, "--omit", "seed", "--out", str(tmp_path / "out" / "eval.json")]


def test_replies_that_came_before_a_failure_are_not_asked_for_again(
    service, openai_answer, problems, tmp_path, capsys
) -> None:
    asked, all_others, numbers, fails = [], threading.Event(), count(), True

    def answer(path: str, headers: dict, body: dict) -> tuple:
        word = body["messages"][0]["content"].split()[0]
        asked.append(word)
        if word == "q1" and fails:
            all_others.wait(60)  # what is under way when one fails is waited for
            return 500, "broken"
        if len([other for other in asked if other != "q1"]) == 4:
            all_others.set()
        return 200, openai_answer(f"\\boxed{{{next(numbers)}}}")

    flags = ["--endpoint", service(answer), *problems]
    out, partial = tmp_path / "out" / "eval.json", tmp_path / "out" / "eval.json.partial"
    with pytest.raises(RunError, match="answers 500"):
        verb.main(flags)
    assert f"4 replies are kept in {partial}: the same command goes on from them" in capsys.readouterr().err
    assert not out.exists()
    first = {json.loads(line)["reply"]["text"] for line in partial.read_text().splitlines()}
    assert len(first) == 4, "two replies to one question are two, though their requests are the same"
    with partial.open("a") as file:
        file.write('{"asked": "torn')  # a kill may cut the last line
    fails = False
    asked.clear()
    assert verb.main(flags) == 0
    assert asked == ["q1", "q1"]
    assert f"4 of 6 replies are taken from {partial}" in capsys.readouterr().err
    items = json.loads(out.read_text())["items"]
    assert {reply["text"] for item in items if item["key"] != "mine:q1" for reply in item["replies"]} == first
    assert not partial.exists()


def test_replies_to_other_requests_are_neither_used_nor_thrown_away(
    service, openai_answer, problems, tmp_path, capsys
) -> None:
    flags = ["--endpoint", service(lambda *_: (200, openai_answer("\\boxed{2}"))), *problems]
    partial = tmp_path / "out" / "eval.json.partial"
    Kept(partial).add("another", Reply("x", True, 1))
    assert verb.main(flags) == 0
    assert f"{partial} holds 1 replies to other requests, and stays" in capsys.readouterr().err
    assert Kept(partial).find("another") == Reply("x", True, 1)
    partial.write_text('{"other": 1}\n')
    with pytest.raises(DataError, match="holds no replies of an evaluation that broke off"):
        verb.main(flags)
