"""Abuse by what a body says, by number: numbers, schemas, tools, and files that a model comes with."""

import json
import resource
import signal

import httpx
import pytest

from sobre.errors import CheckpointError
from sobre.serve import grammar
from sobre.serve.chat_schema import parse_chat_request
from sobre.serve.errors import ApiError
from sobre.serve.grammar import Grammars, json_grammar
from sobre.serve.prefixes import KeptPrefixes
from sobre.tokenizer import folder
from sobre.tokenizer.tokenizer import Tokenizer

PATH = "/v1/chat/completions"
HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "3+4?"}]}
REALS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
WHOLES = ("top_k", "seed", "n", "max_tokens", "max_completion_tokens", "thinking_token_budget")
INSIDE = {
    "top_logprobs": '"logprobs": true, "top_logprobs": %s',
    "thinking.budget_tokens": '"thinking": {"type": "enabled", "budget_tokens": %s}',
    "reasoning.max_tokens": '"reasoning": {"max_tokens": %s}',
    "logit_bias": '"logit_bias": {"5": %s}',
}
FIELDS = {name: f'"{name}": %s' for name in (*REALS, *WHOLES)} | INSIDE
ZERO_FITS = {"temperature", "min_p", "presence_penalty", "frequency_penalty", "logit_bias"}
ZERO_FITS |= {"top_k", "seed", "top_logprobs"}
ZERO_FITS |= {"thinking_token_budget", "thinking.budget_tokens", "reasoning.max_tokens"}


BEYOND = ("9" * 5000, "-" + "9" * 5000, "1e999999999", "1e308", "-1e308", str(2**63), str(-(2**63) - 1))


def taken(field, number):
    """Whether a body with this number, spelt like this, is a request; it is a short 400 else."""
    try:
        parse_chat_request((json.dumps(HELLO)[:-1] + f", {FIELDS[field] % number}}}").encode())
    except ApiError as error:
        refusal = error
    else:
        return True
    assert refusal.status == 400
    assert len(json.dumps(refusal.body())) < 2048
    return False


@pytest.mark.parametrize("field", FIELDS)
def test_07_no_number_field_takes_what_is_no_number_and_minus_zero_is_zero(field):
    for wrong in ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", *BEYOND):
        assert not taken(field, wrong), wrong[:20]
    for zero in ("0", "-0"):
        assert taken(field, zero) is (field in ZERO_FITS), zero
    if field not in (*REALS, "logit_bias"):
        for part in ("-0.0", "0.5", "1.0", "1e0"):
            assert not taken(field, part), part


@pytest.mark.slow
def test_38_the_context_of_the_real_engine_ends_where_it_says_also_for_a_prompt_found_again(serving, real_engine):
    with serving(real_engine(max_len=256)) as live:

        def asked(n_digits):
            fields = {"messages": [{"role": "user", "content": "7" * n_digits}], "max_tokens": 1, "temperature": 0}
            return httpx.post(f"{live.url}{PATH}", json=HELLO | fields, timeout=60)

        room = live.engine.max_context - (asked(1).json()["usage"]["prompt_tokens"] - 1)
        found = []
        for _ in range(3):
            made = asked(room - 1).json()
            assert (made["usage"]["total_tokens"], made["choices"][0]["finish_reason"]) == (256, "length")
            found.append(made["usage"]["prompt_cache_hit_tokens"])
            for over in (room, room + 1):
                refused = asked(over)
                assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert found[0] < found[1] <= found[2]
        assert found[1] > 200
    live.engine.check_integrity()


def compiled(tokenizer, schema):
    """Whether a matcher takes it; the words of the refusal else."""
    try:
        Grammars(tokenizer, tokenizer.vocab_size).matcher(json_grammar(schema, "x", in_thought=False), "x")
    except ApiError as error:
        refusal = error
    else:
        return True
    assert refusal.status == 400
    assert len(str(refusal)) < 600
    return str(refusal)


@pytest.mark.parametrize(
    "pattern", [r"(a)\1", r"(?P<x>a)(?P=x)", "(?!x)a", "(?<!x)a", "a{5,2}", "[z-a]", "*a", "a**{", "(?i"]
)
def test_41_what_no_automaton_can_follow_is_refused(tokenizer, pattern):
    assert "cannot be used" in str(compiled(tokenizer, {"type": "string", "pattern": pattern}))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*){1000}", "[a-z]{1,100000}", "(a|a)*b", "(x{0,99}){0,99}"])
def test_41_patterns_that_would_take_other_engines_for_ever_are_compiled_or_refused_at_once(tokenizer, pattern):
    """A limit on what is compiled, not on time: nothing here runs in a thread that could be left behind."""
    assert compiled(tokenizer, {"type": "string", "pattern": pattern})


def nested(n):
    schema = {"type": "string"}
    for _ in range(n):
        schema = {"type": "array", "items": schema}
    return schema


def test_42_and_43_schemas_too_deep_or_too_long_are_refused_with_the_limit(live, tokenizer):
    for schema, why in (
        (nested(70), "nested deeper than 64 levels"),
        ({"enum": [f"w{i}" for i in range(20_000)]}, "longer than 100,000 characters"),
        ({"allOf": [{"type": "string"}] * 10_000}, "longer than 100,000 characters"),
    ):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        error = live.http.post(PATH, json=HELLO | {"response_format": form}).json()["error"]
        assert error["param"] == "response_format.json_schema.schema"
        assert why in error["message"]
    thousand = '{"type": "array", "items": ' * 1000 + "{}" + "}" * 1000
    form = f'{{"type": "json_schema", "json_schema": {{"name": "x", "schema": {thousand}}}}}'
    body = f'{json.dumps(HELLO)[:-1]}, "response_format": {form}}}'
    told = live.http.post(PATH, content=body, headers={"content-type": "application/json"})
    assert (told.status_code, told.json()["error"]["code"]) == (400, "invalid_json")
    assert len(told.content) < 1024
    million = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["word"] * 10**6}}}
    assert live.http.post(PATH, json=HELLO | {"response_format": million}).status_code == 413
    assert compiled(tokenizer, {"enum": [f"w{i}" for i in range(5000)]}) is True


@pytest.mark.parametrize("field", ["grammar", "guided_grammar", "ebnf", "structured_outputs.grammar"])
def test_45_no_field_takes_a_grammar(live, field):
    name, _, inner = field.partition(".")
    text = "start: start start | "
    error = live.http.post(PATH, json=HELLO | {name: {inner: text} if inner else text}).json()["error"]
    assert error["param"] in (field, f"{name}.regex")
    assert error["code"] in ("unknown_field", "missing_field")


def test_46_compiled_grammars_are_kept_up_to_a_size_whatever_their_number(tokenizer, monkeypatch):
    monkeypatch.setattr(grammar, "MAX_KEPT_CHARS", 20_000)
    grammars = Grammars(tokenizer, tokenizer.vocab_size)

    def use(i, size):
        grammars.matcher(json_grammar({"const": f"{i} {'x' * size}"}, "x", in_thought=False), "x")
        return len(grammars._kept)

    assert [use(i, 5_000) for i in range(5)] == [1, 2, 3, 3, 3]
    assert use(1, 5_000) == 3
    assert [use(i, 10) for i in range(30)][-1] > 20
    assert use(0, 30_000) == 0, "one that is larger than all is used and not kept"
    assert use(0, 10) == 1


CALL = "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>"


@pytest.fixture
def writing(serving, scripted, answer_ids):
    """`writing(text)`: a server whose model answers with it."""
    contexts = []

    def start(text):
        contexts.append(serving(scripted(lambda request: answer_ids("hm", text), max_context=30_000)))
        return contexts[-1].__enter__()

    yield start
    for context in contexts:
        context.__exit__(None, None, None)


def calls_of(live, *names, **fields):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    made = live.http.post(PATH, json=HELLO | {"tools": tools} | fields, timeout=60)
    assert made.status_code == 200, made.text
    return made.json()["choices"][0]


def test_47_names_that_a_page_might_trip_over_are_only_names(writing):
    names = ["__proto__", "constructor", "toString", "hasOwnProperty", "x" * 64]
    spelt = "".join(CALL.format(name=name, arguments='{"__proto__": 1}') for name in names)
    choice = calls_of(writing(f"<｜tool▁calls▁begin｜>{spelt}<｜tool▁calls▁end｜>"), *names)
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == names
    assert all(call["function"]["arguments"] == '{"__proto__": 1}' for call in choice["message"]["tool_calls"])


def test_48_a_hundred_calls_come_whole_and_in_order(writing):
    spelt = "".join(CALL.format(name="f", arguments=f'{{"i": {i}}}') for i in range(100))
    live = writing(f"<｜tool▁calls▁begin｜>{spelt}<｜tool▁calls▁end｜>")
    calls = calls_of(live, "f")["message"]["tool_calls"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"i": i} for i in range(100)]
    assert len({call["id"] for call in calls}) == 100
    cut = calls_of(live, "f", max_tokens=400)
    assert cut["finish_reason"] == "length", "what an answer may be long is the limit of its calls"
    assert 0 < len(cut["message"]["tool_calls"]) < 100


@pytest.mark.parametrize("arguments", ['{"a": "}"}', '{"a": "\\"}]}"}', '{"a": "<｜tool▁calls▁end｜> {"}'])
def test_48_braces_in_a_text_end_no_call(writing, arguments):
    live = writing(f"<｜tool▁calls▁begin｜>{CALL.format(name='f', arguments=arguments)}<｜tool▁calls▁end｜>")
    choice = calls_of(live, "f")
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == json.loads(arguments)


def test_57_a_full_disk_keeps_no_prefixes_and_spoils_no_earlier_file(real_engine, tmp_path):
    engine, told = real_engine(), []
    kept = KeptPrefixes(engine, "w", tmp_path, "m", told.append)
    kept.path.write_bytes(b"earlier")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # as a disk with 64 bytes left
    try:
        kept.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert told[0].startswith("prefixes: nothing was kept: ")
    assert [file.name for file in tmp_path.iterdir()] == [kept.path.name]
    assert kept.path.read_bytes() == b"earlier"


def test_68_vocabularies_beyond_measure_or_against_themselves_are_refused(tokenizer, tmp_path, monkeypatch):
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    with file.open("r+b") as opened:
        opened.truncate(2**30)  # a gibibyte that takes no room
    with pytest.raises(CheckpointError, match="1,073,741,824 bytes; at most 268,435,456"):
        Tokenizer.load(tmp_path)
    vocabulary = whole["model"]["vocab"]
    first = next(iter(vocabulary))
    for merges in ([["zz", "yy"]], [[first, first + first]], ["a"], [[first]], {}):
        file.write_text(json.dumps(whole | {"model": whole["model"] | {"merges": merges}}), encoding="utf-8")
        with pytest.raises(CheckpointError, match="cannot be read"):
            Tokenizer.load(tmp_path)
    with pytest.raises(CheckpointError, match="300"):
        tokenizer.check_fits(100, "small")
    assert folder.MAX_VOCABULARY_BYTES == 268_435_456
