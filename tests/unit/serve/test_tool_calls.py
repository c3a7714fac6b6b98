"""Calls in an answer's text, cut at every place."""

import json

import pytest

from sobre.serve.events import AnswerReader, Delta
from sobre.tokenizer.deepseek import layout
from sobre.tokenizer.special import EOS
from sobre.tokenizer.tool_calls import CallArguments, CallReader, CallStart

V31 = (
    'Let me see. <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": "é<｜x"}<｜tool▁call▁end｜>'
    "<｜tool▁call▁begin｜>go<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
V3 = (
    "Let me see. <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
    '{"a": "é<｜x"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>go\n```json\n{}\n```'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
V32 = (
    'Let me see. \n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="add">\n'
    '<｜DSML｜parameter name="a" string="true">é<｜x</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    '<｜DSML｜invoke name="go">\n\n</｜DSML｜invoke>\n</｜DSML｜function_calls>'
)
HERMES = (
    'Let me see. <tool_call>\n{"name": "add", "arguments": {"a": "é<｜x"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "go", "arguments": {}}\n</tool_call>'
)


def read(text, step):
    reader, plain, calls = CallReader(), "", {}
    for at in range(0, len(text), step):
        for item in reader.push(text[at : at + step]):
            if isinstance(item, str):
                plain += item
            elif isinstance(item, CallStart):
                calls[item.index] = [item.name, ""]
            else:
                calls[item.index][1] += item.text
    return plain + reader.close(), [tuple(call) for call in calls.values()], reader


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("text", [V31, V3, V32, HERMES])
def test_calls_are_found_wherever_the_text_is_cut(text, step):
    plain, calls, reader = read(text, step)
    assert plain == "Let me see. "
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [("add", {"a": "é<｜x"}), ("go", {})]
    assert (reader.n_calls, reader.n_complete) == (2, 2)


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize(
    "text", ["a < b", "<｜tool▁calls", "<tool", "no call", "", "<think>", "a\n\n", "\n\n<｜DSML｜"]
)
def test_what_is_no_call_is_text(text, step):
    assert read(text, step)[:2] == (text, [])


@pytest.mark.parametrize(
    "arguments",
    [{}, {"q": 'a "b"\n</x> ', "n": 3, "deep": {"l": [1, None, "é"]}, "yes": True, "e": ""}, {"s": "1"}],
)
def test_what_v32_writes_is_what_it_reads(arguments):
    call = {"type": "function", "function": {"name": "find", "arguments": json.dumps(arguments)}}
    asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "So:", "tool_calls": [call, call]}]
    written = "".join(piece.text for piece in layout("v3.2", asked, ()))
    said = written.split("</think>")[-1].removesuffix(EOS)
    plain, calls, _ = read(said, 5)
    assert plain == "So:"
    assert [(name, json.loads(text)) for name, text in calls] == [("find", arguments)] * 2


def test_a_call_that_is_cut_off_is_not_complete(tokenizer):
    text = V31[: V31.index('<｜x"')]
    reader = AnswerReader(tokenizer, [tokenizer.think_close_id], tools=True)
    shown = [one for token in tokenizer.encode(text) for one in reader.push(token)] + reader.close()
    assert not reader.called
    assert "".join(one.text for one in shown if isinstance(one, Delta)) == "Let me see. "
    assert "".join(one.text for one in shown if isinstance(one, CallArguments)) == '{"a": "é'


def test_without_tools_the_marks_are_text(tokenizer):
    reader = AnswerReader(tokenizer, [tokenizer.think_close_id])
    shown = [one for token in tokenizer.encode(HERMES) for one in reader.push(token)] + reader.close()
    assert "".join(one.text for one in shown) == HERMES
