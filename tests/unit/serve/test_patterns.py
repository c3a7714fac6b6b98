"""Answers that a regular expression describes from end to end."""

import re

import pytest

from sobre.serve.grammar import Grammars, pattern_grammar

PATH = "/v1/chat/completions"
HELLO = {"model": "scripted", "messages": [{"role": "user", "content": "When?"}]}
DATE = r"^(Mon|Tues)day, [0-3][0-9]/[01][0-9]$"
ADD = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize(
    ("pattern", "fits", "not_quite"),
    [
        ("a/b", "a/b", "a\\/b"),
        (r"a\/b", "a/b", "a"),
        (r"[/]+", "//", "/a"),
        ("a\nb", "a\nb", "ab"),
        ("\\\n", "\n", "n"),
        (r"\$", "$", ""),
        (r"\\$", "\\", "\\$"),
        ("^a|b$", "b", "ab"),
        ("^$", "", "a"),
        ("七+🙂", "七七🙂", "七"),
        ('/\nstart: "x"', '/\nstart: "x"', "x"),
    ],
)
def test_a_pattern_means_here_what_it_means_elsewhere(tokenizer, pattern, fits, not_quite):
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    for text, expected in ((fits, True), (not_quite, False)):
        assert (re.fullmatch(pattern, text) is not None) == expected, "the test itself"
        matcher = grammars.matcher(pattern_grammar(pattern, "x", in_thought=False), "x")
        taken = all(matcher.consume_token(token) for token in tokenizer.encode(text))
        assert (taken and matcher.is_accepting()) == expected


@pytest.mark.parametrize(
    "fields",
    [{"response_format": {"type": "regex", "pattern": DATE}}, {"structured_outputs": {"regex": DATE}}],
)
def test_answers_follow_a_pattern_after_the_thought_and_while_tokens_are_guessed(
    serving, real_engine, tokenizer, fields
):
    with serving(real_engine(n_mtp=1, speculate=True)) as live:
        for seed in range(4):
            asked = HELLO | fields | {"seed": seed, "temperature": 1, "max_tokens": 80, "thinking_token_budget": 12}
            choice = live.http.post(PATH, json=asked, timeout=120).json()["choices"][0]
            assert re.fullmatch(DATE, choice["message"]["content"])
            assert choice["finish_reason"] == "stop"
            assert choice["message"]["reasoning_content"]
        plain = live.http.post(PATH, json=asked | {"thinking": {"type": "disabled"}, "thinking_token_budget": None})
        assert re.fullmatch(DATE, plain.json()["choices"][0]["message"]["content"])
        assert live.engine.drafts[0] > 0


def test_names_that_mean_something_elsewhere_are_names_of_an_answer_like_others(serving, real_engine):
    names = {"__proto__": {"const": 1}, "constructor": {"const": 2}}
    schema = {"type": "object", "properties": names, "required": [*names], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    with serving(real_engine()) as live:
        asked = HELLO | {"response_format": form, "reasoning_effort": "none", "max_tokens": 100}
        said = live.http.post(PATH, json=asked, timeout=120).json()["choices"][0]["message"]["content"]
    assert said.replace(" ", "") == '{"__proto__":1,"constructor":2}'


@pytest.mark.parametrize("pattern", ["(", "(?=x)y", r"(a)\1", r"\bword\b", "a^b", "x$y", "[b-a]", "a)|(b", "+"])
@pytest.mark.parametrize("field", ["response_format.pattern", "structured_outputs.regex"])
def test_patterns_that_are_none_are_refused_by_name(live, pattern, field):
    forms = {
        "response_format.pattern": {"response_format": {"type": "regex", "pattern": pattern}},
        "structured_outputs.regex": {"structured_outputs": {"regex": pattern}},
    }
    refused = live.http.post(PATH, json=HELLO | forms[field])
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "bad_grammar", field)


REGEX = {"type": "regex", "pattern": "a"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "regex"}}, "response_format"),
        ({"response_format": {"type": "text", "pattern": "a"}}, "response_format"),
        ({"response_format": {"type": "regex", "pattern": ""}}, "response_format.pattern"),
        ({"response_format": {"type": "regex", "pattern": "a" * 10_001}}, "response_format.pattern"),
        ({"response_format": REGEX, "tools": [ADD]}, "response_format"),
        ({"response_format": REGEX, "structured_outputs": {"regex": "a"}}, "response_format"),
        ({"structured_outputs": {"regex": "a"}, "tools": [ADD]}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
        (
            {
                "structured_outputs": {"regex": "a"},
                "messages": [*HELLO["messages"], {"role": "assistant", "content": "x", "prefix": True}],
            },
            "messages",
        ),
    ],
)
def test_an_answer_has_one_form_and_all_of_it_is_said(live, fields, param):
    refused = live.http.post(PATH, json=HELLO | fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
