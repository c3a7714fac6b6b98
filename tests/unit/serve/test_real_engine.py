"""A server before the real engine: clients that leave in every phase, a poisoned request, guesses with grammars, turns.

Numbers in names are those of the conformance list (test_conformance.py). After each test nothing is open, no block is
held and the engine's books are right.
"""

import concurrent.futures
import json
import random
import re
import time

import httpx
import jsonschema
import pytest

from sobre.models.config import BLOCK
from sobre.serve.grammar import Grammars

PATH = "/v1/chat/completions"
HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}], "seed": 1}  # every run draws the same
WORDS = "abcdefgh ijkl mnop qrst"
FACT = {"const": "Three plus four is seven, and so is two plus five."}


@pytest.fixture
def before(serving, real_engine, eventually):
    """`before(speculate=True)`: a server before a real engine of its own, looked over at the end."""
    opened = []

    def start(*, max_open=2000, delay_s=0.0, **sizes):
        engine = real_engine(**sizes)
        engine.delay_s = delay_s
        context = serving(engine, max_open=max_open)
        live = context.__enter__()
        opened.append((context, live))
        return live

    yield start
    for context, live in opened:
        try:
            assert eventually(lambda live=live: idle(live))
            assert live.http.get("/readyz").status_code == 200
        finally:
            context.__exit__(None, None, None)
        live.engine.check_integrity()


def idle(live):
    return live.bridge.n_open == 0 and not live.engine.has_work and live.engine.n_blocks_held == 0


def post(live, **fields):
    return httpx.post(f"{live.url}{PATH}", json=HELLO | fields, timeout=120)


def said(n, seed=0):
    """A user's turn of about n tokens, unlike every other."""
    return [{"role": "user", "content": "".join(random.Random(seed).choice(WORDS) for _ in range(n))}]


def leave(connect, live, **fields):
    """A request whose client can be closed."""
    body = json.dumps(HELLO | {"reasoning_effort": "none"} | fields).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sock = connect(live.url)
    sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return sock


def n_left(live):
    found = re.search(r"sobre_request_cancelled_total\{.*\} ([\d.]+)", live.http.get("/metrics").text)
    return float(found[1]) if found else 0.0


ENDLESS = {"max_tokens": 400, "logit_bias": {"1": -100}}


def one_runs(live):
    return live.engine.n_running == 1


def reading(live):
    """A long prompt is half read."""
    rows = list(live.engine._scheduler.running.values())
    return any(0 < row.n_cached < row.goal for row in rows)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("phase", "fields", "reached"),
    [
        ("decoding", ENDLESS, lambda live: any(row.n_generated for row in live.engine._scheduler.running.values())),
        ("four choices", ENDLESS | {"n": 4}, lambda live: live.engine.n_running == 4),
        ("a prompt half read", {"messages": said(400), "max_tokens": 9}, reading),
        ("queued", ENDLESS | {"n": 8}, lambda live: live.engine.n_waiting == 4),
    ],
)
@pytest.mark.slow
def test_86_whoever_leaves_gives_everything_back(before, connect, eventually, phase, fields, reached, stream):
    live = before(prefill_tokens=32, delay_s=0.02)
    n_before = n_left(live)
    sock = leave(connect, live, stream=stream, **fields)
    assert eventually(lambda: reached(live)), phase
    sock.close()
    assert eventually(lambda: idle(live), 5), phase
    assert eventually(lambda: n_left(live) == n_before + 1, 5)
    assert post(live, max_tokens=2).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("place", ["template", "grammar"])
@pytest.mark.slow
def test_86_who_leaves_before_the_engine_is_asked_leaves_nothing(
    before, connect, eventually, monkeypatch, tokenizer, place, stream
):
    live, entered = before(), []

    def slowly(real):
        def wrapped(*given, **named):
            entered.append(place)
            time.sleep(0.3)
            return real(*given, **named)

        return wrapped

    if place == "template":
        monkeypatch.setattr(tokenizer, "render", slowly(tokenizer.render))
    else:
        monkeypatch.setattr(Grammars, "matcher", slowly(Grammars.matcher))
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": random.random()}}}
    sock = leave(connect, live, stream=stream, response_format=form, max_tokens=400)
    assert eventually(lambda: entered)
    sock.close()
    monkeypatch.undo()
    assert eventually(lambda: idle(live), 5)
    assert post(live, max_tokens=2).status_code == 200


@pytest.mark.slow
def test_87_one_that_leaves_while_another_reads_a_long_prompt_disturbs_neither_it_nor_the_next(
    before, connect, eventually
):
    live = before(prefill_tokens=32, delay_s=0.02)
    alone = post(live, messages=said(400, 1), max_tokens=8, temperature=0).json()["choices"][0]["message"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        leaving = leave(connect, live, messages=said(380, 2), max_tokens=50)
        staying = pool.submit(post, live, messages=said(400, 3), max_tokens=8, temperature=0)
        assert eventually(lambda: live.engine.n_running == 2 and reading(live))
        leaving.close()
        late = pool.submit(post, live, messages=said(400, 1), max_tokens=8, temperature=0)
        assert staying.result().json()["usage"]["completion_tokens"] == 8
        assert late.result().json()["choices"][0]["message"] == alone


@pytest.mark.slow
def test_86_a_thousand_clients_that_leave_at_random_leave_no_block_behind(before, connect, eventually):
    live, rng = before(speculate=True, cache_tokens=1024, prefill_tokens=32), random.Random(0)
    pending = []
    for i in range(1000):
        fields = {"messages": said(rng.choice([1, 20, 200]), i), "max_tokens": rng.choice([1, 5, 200])}
        pending.append(leave(connect, live, stream=rng.random() < 0.5, n=rng.randint(1, 3), **fields))
        if len(pending) > rng.randint(0, 8):
            pending.pop(rng.randrange(len(pending))).close()
        if i % 100 == 0:
            assert post(live, max_tokens=2).status_code == 200
    for sock in pending:
        sock.close()
    assert eventually(lambda: idle(live), 60)


@pytest.mark.slow
def test_92_a_request_that_the_model_fails_at_fails_alone_and_the_others_lose_nothing(before, tokenizer):
    (poison,) = tokenizer.encode("~")
    live = before(delay_s=0.01, max_batch=8)
    live.engine._runner._whole.run = lambda *_: None  # every step goes through the module, where it is refused

    def refuse(_, given):
        if bool((given[0].tokens_N == poison).any()):
            raise RuntimeError("the model cannot read this")

    kept = [said(60, seed) for seed in range(3)]
    fields = {
        "max_tokens": 60,
        "temperature": 0,
        "reasoning_effort": "none",
        "logit_bias": {str(poison): -100, "1": -100},
    }
    alone = [post(live, messages=one, **fields).json()["choices"][0]["message"]["content"] for one in kept]
    hook = live.engine._runner.model.register_forward_pre_hook(refuse)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        others = [pool.submit(post, live, messages=one, **fields) for one in kept]
        while live.engine.n_running < 3:
            time.sleep(0.005)
        bad = pool.submit(post, live, messages=[{"role": "user", "content": "a ~ b"}], max_tokens=5)
        assert (bad.result().status_code, bad.result().json()["error"]["code"]) == (500, "engine_error")
        assert [one.result().json()["choices"][0]["message"]["content"] for one in others] == alone
    hook.remove()


@pytest.mark.slow
def test_39_the_next_turn_finds_its_history_though_the_thought_is_gone(before, eventually, tokenizer):
    """The answer is read again, without the thought, while nobody asks; what comes of it is exact."""
    live = before()
    asked = said(60, 5)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": FACT}}
    first = post(live, messages=asked, response_format=form, max_tokens=200, thinking_token_budget=20).json()
    message = first["choices"][0]["message"]
    assert len(message["reasoning_content"]) > 5
    assert json.loads(message["content"]) == FACT["const"]
    assert eventually(lambda: live.engine.n_warmed == 1 and not live.engine.has_work)
    history = [*asked, {"role": "assistant", "content": message["content"]}]
    second = [*history, {"role": "user", "content": "and?"}]
    fields = {"messages": second, "max_tokens": 12, "temperature": 0, "reasoning_effort": "none"}
    warm = post(live, **fields).json()
    found = warm["usage"]["prompt_cache_hit_tokens"]
    assert found >= len(tokenizer.render(history)) // BLOCK * BLOCK > len(tokenizer.render(asked))
    cold = before(prefix_cache=False)
    assert warm["choices"] == post(cold, **fields).json()["choices"]


@pytest.mark.slow
def test_39_a_turn_after_a_tools_result_finds_the_call_and_its_thought(before):
    live = before(max_batch=2)
    tool = {"type": "function", "function": {"name": "add", "parameters": {"const": {"a": 1}}}}
    asked = said(20, 6)  # short: bytes that are no character come back as three, and 512 tokens must hold the turn
    fields = {"tools": [tool], "max_tokens": 250, "thinking_token_budget": 6, "parallel_tool_calls": False}
    first = post(live, messages=asked, tool_choice="required", **fields).json()
    assert first["choices"][0]["finish_reason"] == "tool_calls"
    turn = first["choices"][0]["message"]
    (call,) = turn["tool_calls"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "7"}
    again = post(live, messages=[*asked, turn, result], **fields | {"max_tokens": 1}).json()["usage"]
    assert again["prompt_cache_hit_tokens"] >= first["usage"]["prompt_tokens"] // BLOCK * BLOCK > 0


SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}, "sure": {"type": "boolean"}},
    "required": ["sum", "sure"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("n_mtp", [0, 1])
@pytest.mark.slow
def test_64_schemas_and_thoughts_hold_while_the_models_own_head_or_the_context_guesses(before, n_mtp):
    live = before(n_mtp=n_mtp, speculate=True, max_batch=12)
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA, "strict": True}}
    fields = {"response_format": form, "max_tokens": 150, "temperature": 1, "thinking_token_budget": 30}
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda seed: post(live, seed=seed, **fields).json()["choices"][0], range(24)))
    for answer in answers:
        assert answer["finish_reason"] == "stop"
        assert answer["message"]["reasoning_content"]
        jsonschema.validate(json.loads(answer["message"]["content"]), SCHEMA)
    drafted, accepted = live.engine.drafts
    assert 0 < accepted < drafted or not n_mtp
    told = live.http.get("/metrics").text
    for name, count in (("draft", drafted), ("accepted", accepted)):
        assert f'sobre_spec_decode_num_{name}_tokens_total{{model_name="scripted"}} {float(count)}' in told


@pytest.mark.slow
def test_47_arguments_hold_to_their_schema_while_the_models_own_head_guesses(before):
    live = before(n_mtp=1, speculate=True, max_len=1024)
    tool = {"type": "function", "function": {"name": "add", "parameters": SCHEMA, "strict": True}}
    fields = {"tools": [tool], "tool_choice": "required", "max_tokens": 300, "thinking_token_budget": 20}
    for seed in range(4):
        made = post(live, seed=seed, parallel_tool_calls=False, **fields).json()["choices"][0]
        assert made["finish_reason"] == "tool_calls"
        jsonschema.validate(json.loads(made["message"]["tool_calls"][0]["function"]["arguments"]), SCHEMA)


@pytest.mark.slow
def test_58_a_deterministic_server_gives_the_same_bits_in_a_crowd_found_again_and_guessed(before):
    fields = {"max_tokens": 24, "logprobs": True, "top_logprobs": 3, "reasoning_effort": "none"}
    asked = [{"messages": said(40, i), "temperature": i % 2, "seed": i} for i in range(6)]

    def bits(live, one):
        return post(live, **fields, **one).json()["choices"]

    plain = before(deterministic=True, prefix_cache=False, max_batch=1)
    alone = [bits(plain, one) for one in asked]
    live = before(deterministic=True, speculate=True, n_mtp=0, prefill_tokens=16, max_batch=6)
    for _ in range(2):
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            assert list(pool.map(lambda one: bits(live, one), asked)) == alone
    assert live.engine.stats.found_tokens > 0


def test_54_the_same_prompt_many_times_at_once_is_read_once(before):
    """Of the abuse list: a stampede."""
    live, asked, n = before(prefill_tokens=32, delay_s=0.01), said(300, 9), 24
    fields = {"messages": asked, "max_tokens": 1, "reasoning_effort": "none"}
    with concurrent.futures.ThreadPoolExecutor(n) as pool:
        usages = [one.json()["usage"] for one in pool.map(lambda seed: post(live, seed=seed, **fields), range(n))]
    n_prompt = usages[0]["prompt_tokens"]
    assert live.engine.stats.computed_tokens < n_prompt + n * (BLOCK + 1)
    assert sum(usage["prompt_cache_hit_tokens"] > 0 for usage in usages) >= n - 1


def test_an_answer_that_goes_in_circles_is_stopped_and_said_to(before):
    live = before()
    made = post(live, logit_bias={"50": 100}, max_tokens=300, reasoning_effort="none").json()
    choice = made["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "repetition")
    assert made["usage"]["completion_tokens"] == 16


@pytest.mark.slow
def test_28_answer_now_takes_effect_within_two_tokens(before, tokenizer, eventually):
    live = before(delay_s=0.1)
    bias = {str(tokenizer.think_close_id): -100, "1": -100}
    body = HELLO | {"stream": True, "max_tokens": 100, "thinking_token_budget": -1, "logit_bias": bias}
    with httpx.stream("POST", f"{live.url}{PATH}", json=body, timeout=60) as response:
        lines = (line for line in response.iter_lines() if line.startswith("data: {"))
        first = json.loads(next(lines)[6:])
        assert eventually(lambda: live.engine._scheduler.find(f"{first['id']}/0") is not None)
        row = live.engine._scheduler.find(f"{first['id']}/0")
        while row.n_generated < 5:
            time.sleep(0.01)
        asked = {"id": first["id"], "action": "reasoning_end"}
        assert httpx.post(f"{live.url}{PATH}/control", json=asked).json() == {"success": True}
        n_then = row.n_generated
        for line in lines:
            if json.loads(line[6:])["choices"][0]["delta"].get("content"):
                break
    assert row.answer.index(tokenizer.think_close_id) <= n_then + 2
