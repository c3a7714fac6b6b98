"""What the real engine answers: seeds in a crowd, penalties with the model's own head, JSON of every kind, log
probabilities (numbers of the conformance list; map: test_conformance.py)."""

import concurrent.futures
import json
import re

import httpx
import jsonschema
import pytest

pytestmark = pytest.mark.slow
PATH = "/v1/chat/completions"
HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}], "seed": 1}
DIRECT = {"reasoning_effort": "none"}


def post(live, path=PATH, **fields):
    return httpx.post(f"{live.url}{path}", json=HELLO | fields, timeout=120)


def choice_of(live, **fields):
    made = post(live, **fields)
    assert made.status_code == 200, made.text
    return made.json()["choices"][0]


def at_once(n, ask):
    with concurrent.futures.ThreadPoolExecutor(n) as pool:
        return list(pool.map(ask, range(n)))


@pytest.fixture
def live(serving, real_engine):
    """A server before the real engine, whose context hit the model's own head as well."""
    with serving(real_engine(n_mtp=1, speculate=True, max_batch=12, max_len=512), max_open=100) as running:
        yield running
    running.engine.check_integrity()


def test_59_a_seed_says_the_same_alone_and_in_a_busy_batch(serving, real_engine):
    fields = DIRECT | {"max_tokens": 24, "temperature": 1, "logit_bias": {"1": -100}}
    seeds = (1, 2, 3, 2**32 + 1, -(2**63), 2**63 - 1)
    with serving(real_engine(max_batch=12), max_open=100) as live:
        alone = [choice_of(live, seed=seed, **fields)["message"]["content"] for seed in seeds]
        assert len(set(alone)) == 6, "another seed, another text"

        def one(i):
            others = {"seed": i, "messages": [{"role": "user", "content": "x" * i}]}
            return choice_of(live, **fields | (others if i > 5 else {"seed": seeds[i]}))

        crowd = at_once(12, one)
        assert [one["message"]["content"] for one in crowd[:6]] == alone
        for wrong in (2**63, -(2**63) - 1):
            assert post(live, seed=wrong).json()["error"]["param"] == "seed"


PENALTIES = [
    {"presence_penalty": 2, "frequency_penalty": 2, "repetition_penalty": 10},
    {"presence_penalty": 0.5, "frequency_penalty": -1, "repetition_penalty": 0.5, "logit_bias": {"50": 3}},
]


def test_62_penalties_change_no_token_while_the_models_own_head_guesses(serving, real_engine, live):
    """Also 27 of the abuse list: guesses are judged by logits that each accepted token has changed."""
    fields = DIRECT | {"max_tokens": 24, "temperature": 0}
    free = choice_of(live, **fields)["message"]
    with serving(real_engine(n_mtp=1, max_batch=12)) as plain:
        for penalties in PENALTIES:
            expected = choice_of(plain, **fields, **penalties)
            assert choice_of(live, **fields, **penalties)["message"] == expected["message"]
            assert expected["message"] != free, penalties
            sampled = fields | penalties | {"n": 2, "temperature": 1}
            made = post(live, **sampled)
            assert made.status_code == 200
            assert made.json()["choices"] == post(plain, **sampled).json()["choices"]
    drafted, accepted = live.engine.drafts
    assert 0 < accepted <= drafted


NODE = {
    "type": "object",
    "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
    "required": ["next"],
    "additionalProperties": False,
}
LIST = {"$defs": {"node": NODE}, "$ref": "#/$defs/node"}


def biased(tokenizer, **letters):
    """Letters that the answer should rather be written with."""
    signs = {"quote": '"', "close": "}", "open": "{", "n": "n", "digit": "7"}
    return {str(tokenizer.encode(signs[name])[0]): bias for name, bias in letters.items()}


def test_63_any_object_and_any_value_are_json_and_end(live, tokenizer):
    """The letters that close what is open are made likely: random weights would fill every string to the end."""
    fields = {"temperature": 0, "max_tokens": 200, "thinking_token_budget": 8}
    any_object = {"response_format": {"type": "json_object"}}
    for bias, expected in (({"close": 100}, {}), ({"quote": 100, "close": 50}, {"": ""})):
        made = choice_of(live, logit_bias=biased(tokenizer, **bias), **any_object, **fields)
        assert made["finish_reason"] == "stop"
        assert json.loads(made["message"]["content"]) == expected
        assert made["message"]["reasoning_content"]
    empty = {"type": "json_schema", "json_schema": {"name": "any", "schema": {}}}
    made = choice_of(live, response_format=empty, logit_bias=biased(tokenizer, quote=100), **fields)
    assert (made["finish_reason"], json.loads(made["message"]["content"])) == ("stop", "")


def test_63_references_that_come_back_to_themselves_are_followed_as_deep_as_the_answer_goes(live, tokenizer):
    form = {"type": "json_schema", "json_schema": {"name": "list", "schema": LIST}}
    bias = biased(tokenizer, open=50, n=50)

    def one(seed):
        return choice_of(
            live, response_format=form, seed=seed, temperature=1, max_tokens=300, logit_bias=bias, **DIRECT
        )

    made = at_once(8, one)
    depths = []
    for choice in made:
        assert choice["finish_reason"] == "stop"
        found = json.loads(choice["message"]["content"])
        jsonschema.validate(found, LIST)
        depths.append(choice["message"]["content"].count("{"))
    assert max(depths) > 2


@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        ({"type": "string", "pattern": "^[七八]{2}é$"}, lambda value: re.fullmatch("[七八]{2}é", value)),
        ({"enum": ["sept 七", None, 7, {"a": "🙂"}]}, lambda value: value in ["sept 七", None, 7, {"a": "🙂"}]),
        ({"const": '"\\\n七🙂'}, lambda value: value == '"\\\n七🙂'),
        (
            {"type": "object", "additionalProperties": {"enum": [1]}, "minProperties": 0, "maxProperties": 0},
            lambda value: value == {},
        ),
    ],
    ids=["pattern", "enum", "const", "properties"],
)
def test_63_patterns_and_values_of_any_script_are_held_to(live, schema, fits):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(3):
        made = choice_of(live, response_format=form, seed=seed, temperature=1.5, max_tokens=120, **DIRECT)
        assert made["finish_reason"] == "stop"
        assert fits(json.loads(made["message"]["content"])), made


def test_70_text_completions_tell_the_log_probability_of_every_token(live, tokenizer):
    letters = {str(tokenizer.encode(letter)[0]): 100 for letter in "abcdefgh"}
    body = {"model": "scripted", "prompt": "3+4=", "max_tokens": 9, "temperature": 0, "logit_bias": letters}

    def complete(**fields):
        return httpx.post(f"{live.url}/v1/completions", json=body | fields, timeout=60)

    made = complete(logprobs=3).json()["choices"][0]
    told = made["logprobs"]
    assert "".join(told["tokens"]) == made["text"]
    assert set(made["text"]) <= set("abcdefgh")
    assert [len(told[name]) for name in ("tokens", "token_logprobs", "top_logprobs")] == [9, 9, 9]
    assert all(logprob <= 0 for logprob in told["token_logprobs"])
    for token, logprob, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        assert 1 <= len(top) <= 3
        assert top.get(token, logprob) == logprob
    assert all(top == {} for top in complete(logprobs=0).json()["choices"][0]["logprobs"]["top_logprobs"])
    assert complete().json()["choices"][0]["logprobs"] is None
    assert complete(logprobs=6).json()["error"]["param"] == "logprobs"
    events = [json.loads(one[6:]) for one in complete(logprobs=3, stream=True).text.split("\n\n") if "{" in one]
    pieces = [event["choices"][0]["logprobs"] for event in events]
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert [one for piece in pieces for one in piece[name]] == told[name]
