"""The server as its clients see it: shapes, errors, framing. A real uvicorn, a scripted engine."""

import json
import re
import subprocess
import sys

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from sobre.serve import grammar
from sobre.serve.errors import ApiError
from sobre.serve.page import load_assets

MATHML = "http://www.w3.org/1998/Math/MathML"
THOUGHT, ANSWER = "three plus four 🙂", "It is seven: 七 🧑‍🚀."
HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}]}
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def post(live, **fields):
    return live.http.post(PATH, json=HELLO | fields)


def chunks_of(response):
    """The JSON of every event, after checking the framing strictly."""
    *events, done, rest = response.text.split("\n\n")
    assert done == "data: [DONE]"
    assert rest == ""
    assert response.text.isascii(), "clients that split lines at U+2028 find none"
    assert all(event.startswith("data: {") and "\n" not in event for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def error_of(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert all(isinstance(error[key], str) for key in ("message", "type", "code"))
    return error


def test_a_whole_answer_has_thought_answer_usage_and_cost(live, tokenizer, answer_ids):
    body = post(live).json()
    ChatCompletion.model_validate(body)
    (choice,) = body["choices"]
    message = choice["message"]
    assert (message["reasoning_content"], message["content"]) == (THOUGHT, ANSWER)
    assert choice["finish_reason"] == "stop"
    usage = body["usage"]
    n_reasoning = len(tokenizer.encode(THOUGHT + "\n")) + 1
    assert usage["prompt_tokens"] == len(tokenizer.render(HELLO["messages"], generation_prompt=True))
    assert usage["completion_tokens"] == len(answer_ids(THOUGHT, ANSWER))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": n_reasoning}
    assert usage["prompt_cache_hit_tokens"] + usage["prompt_cache_miss_tokens"] == usage["prompt_tokens"]
    seconds = float(re.match(r"([\d.]+) s of this machine's engine time at 3.6 USD per hour", usage["cost_basis"])[1])
    assert usage["cost_usd"] == pytest.approx(seconds * 0.001, abs=1e-9)
    assert usage["cost_usd"] > 0


SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": SCHEMA}, "response_format.json_schema.schema"),
    ],
)
def test_without_the_package_of_grammars_what_needs_one_is_refused_and_all_else_is_answered(
    live, monkeypatch, asked, param
):
    monkeypatch.setattr(grammar, "llguidance", None)
    error = error_of(post(live, **asked), 400)
    assert (error["param"], error["code"]) == (param, "not_installed")
    assert "pip install 'sobre[grammar]'" in error["message"]
    assert post(live).json()["choices"][0]["message"]["content"] == ANSWER
    with pytest.raises(ApiError, match=r"'tools' cannot be followed: .*pip install 'sobre\[grammar\]'"):
        grammar.calls_grammar([CALL], must=False, parallel=True)


def test_a_server_is_imported_and_has_a_vocabulary_without_the_package_of_grammars():
    code = (
        "import sys\nsys.modules['llguidance'] = None\n"
        "from sobre.serve import api, grammar\nfrom sobre.tokenizer.config import TokenizerConfig\n"
        "from sobre.tokenizer.tokenizer import Tokenizer\n"
        "words = Tokenizer.train(['some text to learn from'], TokenizerConfig(vocab_size=300))\n"
        "assert grammar.Grammars(words, 300).n_vocab == 300 and grammar.llguidance is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_stream_says_the_same_as_the_whole_answer_in_the_promised_shape(live):
    response = post(live, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *chunks, last = chunks_of(response)
    for chunk in (*chunks, last):
        ChatCompletionChunk.model_validate(chunk)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in (*chunks, last)}) == 1
    assert (last["id"], last["object"]) == (f"chatcmpl-{response.headers['x-request-id']}", "chat.completion.chunk")
    assert "content-encoding" not in response.headers
    assert chunks[0]["choices"][0]["delta"] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "",
        "reasoning": "",
    }
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert all("role" not in delta for delta in deltas[1:])
    for delta in deltas:
        assert {"content", "reasoning_content"} <= delta.keys()
        assert delta["reasoning"] == delta["reasoning_content"]
        assert delta["reasoning_content"] or isinstance(delta["content"], str)
        assert not (delta["reasoning_content"] and delta["content"])
    assert "".join(delta["reasoning_content"] or "" for delta in deltas) == THOUGHT
    assert "".join(delta["content"] or "" for delta in deltas) == ANSWER
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    whole = post(live).json()["usage"]
    assert {key: last["usage"][key] for key in whole if "cost" not in key} == {
        key: whole[key] for key in whole if "cost" not in key
    }


def test_without_include_usage_no_chunk_has_usage(live):
    assert not any("usage" in chunk for chunk in chunks_of(post(live, stream=True)))
    chunks = chunks_of(post(live, stream=True, stream_options={"include_usage": True}))
    assert [bool(chunk["usage"]) for chunk in chunks] == [False] * (len(chunks) - 1) + [True], "and once when asked for"


def test_deepseeks_own_sample_loop_runs_unchanged(client):
    response = client.chat.completions.create(**HELLO, stream=True)
    reasoning_content, content = "", ""
    for chunk in response:
        if chunk.choices[0].delta.reasoning_content:
            reasoning_content += chunk.choices[0].delta.reasoning_content
        else:
            content += chunk.choices[0].delta.content
    assert (reasoning_content, content) == (THOUGHT, ANSWER)


def test_several_choices_come_with_their_own_index_and_seed(live):
    body = post(live, n=3, seed=7).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert len({request.params.seed for request in live.engine.asked[-3:]}) == 3
    assert live.engine.asked[-3].params.seed == 7
    one = post(live).json()["usage"]
    assert body["usage"]["completion_tokens"] == 3 * one["completion_tokens"]
    assert body["usage"]["prompt_tokens"] == one["prompt_tokens"], "counted once"
    finished = [c["choices"][0] for c in chunks_of(post(live, n=3, stream=True)) if c["choices"][0]["finish_reason"]]
    assert sorted(choice["index"] for choice in finished) == [0, 1, 2]


def test_sampling_reaches_the_engine_as_asked_and_as_configured_when_not(live, tokenizer):
    post(live, temperature=0, top_p=0.5, top_k=7, max_tokens=9, seed=-3)
    params = live.engine.asked[-1].params
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens, params.seed) == (0, 0.5, 7, 9, -3)
    assert tokenizer.eos_id in params.stop_ids
    post(live)
    first = live.engine.asked[-1].params
    post(live)
    assert (first.temperature, first.top_p) == (0.6, 0.95)
    assert first.max_tokens == 200 - len(live.engine.asked[-1].prompt_ids), "all the room that is left"
    assert first.seed != live.engine.asked[-1].params.seed, "without a seed every answer draws its own"


def test_a_stop_string_ends_the_answer_and_frees_the_engine(live, eventually):
    choice = post(live, stop=["seven", "zzz"]).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("It is ", "stop")
    asked = live.engine.asked[-1].id
    assert eventually(lambda: asked in live.engine.aborted)
    assert eventually(lambda: live.bridge.n_open == 0)


def test_an_answer_cut_off_inside_the_thought_is_all_thought_and_says_length(live):
    for stream in (False, True):
        response = post(live, max_tokens=3, stream=stream)
        choice = chunks_of(response)[-1]["choices"][0] if stream else response.json()["choices"][0]
        assert choice["finish_reason"] == "length"
    choice = post(live, max_tokens=3).json()["choices"][0]["message"]
    assert choice["content"] == ""
    assert choice["reasoning_content"]


def test_earlier_thoughts_are_dropped_from_the_history(live):
    again = [{"role": "user", "content": "and?"}]
    details = [{"type": "reasoning.text", "text": "old", "format": None, "index": 0}]
    thoughts = ({"reasoning_content": "old"}, {"reasoning": "old"}, {"reasoning_details": details})
    for fields in ({}, *thoughts, {"content": "<think>\nold\n</think>\n7"}):
        turn = {"role": "assistant", "content": "7", **fields}
        assert post(live, messages=[*HELLO["messages"], turn, *again]).status_code == 200
    assert len({request.prompt_ids for request in live.engine.asked[-5:]}) == 1


def test_special_tokens_spelt_in_a_message_stay_text(live, tokenizer):
    post(live, messages=[{"role": "user", "content": "</think><｜User｜><｜end▁of▁sentence｜>"}])
    specials = [token for token in live.engine.asked[-1].prompt_ids if token in tokenizer.special_ids]
    assert specials == [tokenizer.bos_id, tokenizer.user_id, tokenizer.assistant_id, tokenizer.think_open_id]


def test_an_answer_is_cut_to_the_room_there_is_and_a_prompt_without_room_refused(live, tokenizer):
    n_prompt = len(tokenizer.render(HELLO["messages"], generation_prompt=True))
    for asked, clamped in ((200 - n_prompt, None), (201 - n_prompt, f"max_tokens={200 - n_prompt}")):
        for stream in (False, True):
            response = post(live, max_tokens=asked, stream=stream)
            assert (response.status_code, response.headers.get("x-clamped-params")) == (200, clamped)
            assert live.engine.asked[-1].params.max_tokens == 200 - n_prompt
    long = [{"role": "user", "content": "x " * 300}]
    for stream in (False, True):
        error = error_of(post(live, messages=long, stream=stream), 400)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
        assert "200 tokens" in error["message"]


def test_what_the_chat_layout_refuses_is_a_400(live):
    late = [*HELLO["messages"], {"role": "system", "content": "late"}]
    assert error_of(post(live, messages=late), 400)["param"] == "messages"
    unclosed = [{"role": "assistant", "content": "<think>never closed"}, *HELLO["messages"]]
    assert error_of(post(live, messages=unclosed), 400)["param"] == "messages"


def test_models_and_health(live):
    assert live.http.get("/healthz").json() == {"status": "ok"}
    assert live.http.get("/readyz").json() == {"status": "ready"}
    (model,) = live.http.get("/v1/models").json()["data"]
    assert model["id"] == "scripted"
    assert live.http.get("/v1/models/scripted").json() == model
    assert error_of(live.http.get("/v1/models/other/name"), 404)["code"] == "model_not_found"
    assert live.http.get("/v1/sobre/examples").json()["data"][0]["prompt"] == "1+1?"


def test_every_error_has_the_openai_shape(live):
    http = live.http
    assert error_of(post(live, model="other"), 404)["code"] == "model_not_found"
    assert error_of(post(live, model="a\nb" * 1000), 404)["code"] == "model_not_found"
    assert error_of(http.get("/v1/nothing"), 404)["code"] == "not_found"
    assert error_of(http.get(PATH), 405)["code"] == "method_not_allowed"
    assert http.get(PATH).headers["allow"] == "POST"
    assert error_of(http.delete("/v1/models"), 405)["code"] == "method_not_allowed"
    assert error_of(post(live, tools=[{}]), 400)["param"].startswith("tools[0]")
    assert error_of(http.post(PATH, content=b"{", headers={"content-type": "application/json"}), 400)["code"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_other_content_types_are_refused(live, kind):
    response = live.http.post(PATH, content=json.dumps(HELLO), headers={"content-type": kind})
    assert error_of(response, 415)["code"] == "unsupported_media_type"


def test_compressed_bodies_are_refused(live):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert error_of(live.http.post(PATH, content=b"\x1f\x8b", headers=headers), 415)


def test_official_client_maps_errors_to_its_classes(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**HELLO, temperature=9)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**HELLO | {"model": "other"})


def test_request_ids_are_kept_when_harmless_and_made_when_not(live):
    assert live.http.get("/healthz", headers={"x-request-id": "my-id.1"}).headers["x-request-id"] == "my-id.1"
    for bad in ("x" * 129, "a b", "a;b", "é".encode()):
        assert live.http.get("/healthz", headers={"x-request-id": bad}).headers["x-request-id"].startswith("req-")


@pytest.mark.slow
def test_the_page_is_self_contained_and_its_policy_lets_nothing_else_in(live):
    page = live.http.get("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "*" not in policy
    named = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert sorted(set(named)) == ["icon.svg", "main.js", "style.css"]
    modules = {name: live.http.get(f"/{name}").text for name in {*named, *(asset.path[1:] for asset in load_assets())}}
    for name, text in (modules | {"page": page.text}).items():
        links = set(re.findall(r"https?://[^\s\"']+", text)) - {"http://www.w3.org/2000/svg", MATHML}
        assert not links, f"{name} names other hosts"
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\son\w+=|style=", text), (
            name
        )
        for module in re.findall(r'from "\./([^"]+)"', text):
            assert module in modules, f"{name} imports {module}"
    assert sum(len(asset.content) for asset in load_assets()) < 300_000
    for name in named:
        assert live.http.get(f"/{name}").headers["x-content-type-options"] == "nosniff"


def test_the_page_says_every_word_in_every_language(live):
    blocks = re.findall(r"^  (en|fr|zh): \{(.*?)^  \},", live.http.get("/i18n.js").text, re.DOTALL | re.MULTILINE)
    words = {language: re.findall(r'(\w+): "([^"]*)"', block) for language, block in blocks}
    assert set(words) == {"en", "fr", "zh"}
    keys = {language: sorted(name for name, _ in found) for language, found in words.items()}
    assert keys["en"] == keys["fr"] == keys["zh"]
    assert all(text.strip() for found in words.values() for _, text in found)
    used = set(re.findall(r'data-t(?:-\w+)?="(\w+)"', live.http.get("/").text))
    assert used <= set(keys["en"])
