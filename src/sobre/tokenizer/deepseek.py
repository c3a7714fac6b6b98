"""The chat layouts of DeepSeek's releases, for folders that bring no template of their own (V3.2 ships none).

Laid out as pieces, as tokenizer/chat.py does it: no message's text can become a special token. Common to the four: bos,
then all system texts, then turns; an assistant's turn ends in eos; the thoughts of earlier turns are dropped.

    v3     <User> question <Assistant> answer eos; calls as JSON in a code fence, results in one block
    r1     the same, and the answer begins with <think> and a line end
    v3.1   <Assistant><think> or <Assistant></think>; tools declared after the system's text; calls as NAME <sep> JSON
    v3.2   the same marks of a thought; tools and calls in DSML; after results the thought goes on, and the thoughts
           since the last question are kept (arXiv 2512.02556, 3.2.1)

V3 and R1 declare no tools, as their published templates do not. Where a template of DeepSeek's leaves a block of
results open (a question right after them), we close it.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from sobre.errors import DataError
from sobre.tokenizer.chat import ROLES, Message, Piece, Tool
from sobre.tokenizer.special import (
    ASSISTANT,
    BOS,
    CALL_CLOSE,
    CALL_OPEN,
    CALL_SEP,
    CALLS_CLOSE,
    CALLS_OPEN,
    DSML,
    EOS,
    THINK_CLOSE,
    THINK_OPEN,
    TOOL_OUTPUT,
    USER,
)

OUTPUT_CLOSE, OUTPUTS_OPEN, OUTPUTS_CLOSE = (
    "<｜tool▁output▁end｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
)
SEARCH = "<｜search▁begin｜>"
"""A token that came with V3.1."""
Marks = Iterator[Piece]
HOW_TO_CALL = f"""## Tools
You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<{DSML}function_calls>" block like the following as part of your reply to\
 the user:
<{DSML}function_calls>
<{DSML}invoke name="$FUNCTION_NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{DSML}parameter>
...
</{DSML}invoke>
<{DSML}invoke name="$FUNCTION_NAME2">
...
</{DSML}invoke>
</{DSML}function_calls>
String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should\
 use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other\
 types (numbers, booleans, arrays, objects).
If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block.\
 Here is an example:
<{DSML}function_calls>
...
</{DSML}function_calls>
<function_results>
...
</function_results>
{THINK_OPEN}...thinking about results{THINK_CLOSE}
Here are the functions available in JSONSchema format:
<functions>
"""
"""V3.2's words before the schemas of the tools."""


def which(model_type: str, added: Collection[str]) -> str:
    """The layout of a DeepSeek model without a template, told by its tokens; "" when it is none."""
    if not model_type.startswith("deepseek_") or not {USER, ASSISTANT} <= {*added}:
        return ""
    if model_type == "deepseek_v32":
        return "v3.2"
    if THINK_OPEN not in added:
        return "v3"
    return "v3.1" if SEARCH in added else "r1"


def layout(
    name: str,
    messages: Sequence[Message],
    added: Collection[str],
    *,
    generation_prompt: bool = False,
    thinking: bool = True,
    tools: Sequence[Tool] = (),
) -> list[Piece]:
    """Lay a chat out as release `name` does. Marks that the vocabulary (`added`) does not have are spelt as text."""
    _check(messages)
    make = LAYOUTS[name]
    found = [Piece(BOS, special=True), *make(messages, generation_prompt, thinking, tools)]
    known = [Piece(piece.text, special=piece.special and piece.text in added) for piece in found if piece.text]
    merged: list[Piece] = []
    for special, run in groupby(known, key=lambda piece: piece.special):
        same = list(run)
        merged += same if special else [Piece("".join(piece.text for piece in same))]
    return merged


def _v3(messages: Sequence[Message], generation: bool, thinking: bool, tools: Sequence[Tool]) -> Marks:
    yield from _turns(messages)
    if generation and messages[-1]["role"] != "tool":
        yield _mark(ASSISTANT)


def _r1(messages: Sequence[Message], generation: bool, thinking: bool, tools: Sequence[Tool]) -> Marks:
    yield from _v3(messages, generation, thinking, tools)
    if generation and messages[-1]["role"] != "tool":
        yield from (_mark(THINK_OPEN), Piece("\n"))


def _turns(messages: Sequence[Message]) -> Marks:
    """What V3 and R1 share: everything but the end of the prompt."""
    yield Piece("\n\n".join(message["content"] for message in messages if message["role"] == "system"))
    for i, message in enumerate(messages):
        role, before = message["role"], messages[i - 1]["role"] if i else ""
        if role == "user":
            yield from (_mark(USER), Piece(message["content"]))
        elif role == "assistant":
            if before != "tool":
                yield _mark(ASSISTANT)
            yield Piece(_without_thought(message))
            yield from _fenced_calls(message.get("tool_calls") or ())
            yield _mark(EOS)
        elif role == "tool":
            if before != "tool":
                yield _mark(OUTPUTS_OPEN)
            yield from (_mark(TOOL_OUTPUT), Piece(message["content"]), _mark(OUTPUT_CLOSE))
            if i + 1 == len(messages) or messages[i + 1]["role"] != "tool":
                yield _mark(OUTPUTS_CLOSE)


def _fenced_calls(calls: Sequence[Mapping[str, Any]]) -> Marks:
    for i, call in enumerate(calls):
        yield _mark(CALLS_OPEN) if not i else Piece("\n")
        yield from (_mark(CALL_OPEN), Piece(call.get("type", "function")), _mark(CALL_SEP))
        yield Piece(f"{call['function']['name']}\n```json\n{_arguments(call)}\n```")
        yield _mark(CALL_CLOSE)
    if calls:
        yield _mark(CALLS_CLOSE)


def _v31(messages: Sequence[Message], generation: bool, thinking: bool, tools: Sequence[Tool]) -> Marks:
    yield Piece("\n\n".join(message["content"] for message in messages if message["role"] == "system"))
    yield from _declared(tools)
    for i, message in enumerate(messages):
        role, before = message["role"], _role_before(messages, i)
        if role == "user":
            yield from (_mark(USER), Piece(message["content"]))
        elif role == "assistant":
            if before == "user":
                yield from (_mark(ASSISTANT), _mark(THINK_CLOSE))
            yield Piece(_without_thought(message))
            calls = message.get("tool_calls") or ()
            if calls:
                yield _mark(CALLS_OPEN)
            for call in calls:
                name = Piece(call["function"]["name"])
                yield from (_mark(CALL_OPEN), name, _mark(CALL_SEP), Piece(_arguments(call)), _mark(CALL_CLOSE))
            if calls:
                yield _mark(CALLS_CLOSE)
            yield _mark(EOS)
        elif role == "tool":
            yield from (_mark(TOOL_OUTPUT), Piece(message["content"]), _mark(OUTPUT_CLOSE))
    if generation and messages[-1]["role"] == "user":
        yield from (_mark(ASSISTANT), _mark(THINK_OPEN if thinking else THINK_CLOSE))


def _declared(tools: Sequence[Tool]) -> Marks:
    """V3.1's words about the tools; the marks in them are tokens."""
    if not tools:
        return
    yield Piece("\n\n## Tools\nYou have access to the following tools:\n")
    for tool in tools:
        function = tool["function"]
        yield Piece(f"\n### {function['name']}\nDescription: {function.get('description', '')}\n")
        yield Piece(f"\nParameters: {_json(function.get('parameters', {}))}\n")
    yield Piece("\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n")
    yield from (_mark(CALLS_OPEN), _mark(CALL_OPEN), Piece("tool_call_name"), _mark(CALL_SEP))
    yield from (Piece("tool_call_arguments"), _mark(CALL_CLOSE), Piece("{{additional_tool_calls}}"), _mark(CALLS_CLOSE))
    yield Piece(
        "\n\nWhere:\n\n- `tool_call_name` must be an exact match to one of the available tools\n- `tool_call_arguments`"
        " must be valid JSON that strictly follows the tool's Parameters Schema\n- For multiple tool calls, chain them"
        " directly without separators or spaces\n"
    )


def _v32(messages: Sequence[Message], generation: bool, thinking: bool, tools: Sequence[Tool]) -> Marks:
    last_user = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    first_turn = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    yield Piece("".join(message["content"] for message in messages[: min(1, first_turn)]))
    if tools:
        yield from (Piece("\n\n"), *_functions(tools))
    yield Piece("".join(message["content"] for message in messages[1:first_turn]))
    for i, message in enumerate(messages[first_turn:], first_turn):
        goes_on = generation if i + 1 == len(messages) else messages[i + 1]["role"] == "assistant"
        opens = _mark(THINK_OPEN if thinking and i >= last_user else THINK_CLOSE)
        if message["role"] == "user":
            yield from (_mark(USER), Piece(message["content"]))
            if goes_on:
                yield from (_mark(ASSISTANT), opens)
        elif message["role"] == "assistant":
            if thinking and i > last_user:
                yield from (Piece(_thought(message)), _mark(THINK_CLOSE))
            yield Piece(_without_thought(message))
            yield from _dsml_calls(message.get("tool_calls") or ())
            yield _mark(EOS)
        elif message["role"] == "tool":
            n, of = _order(messages, i)
            opening = "\n\n<function_results>" if n == 1 else ""
            yield Piece(f"{opening}\n<result>{message['content']}</result>")
            if n == of:
                yield Piece("\n</function_results>")
                if goes_on:
                    yield from (Piece("\n\n"), opens)


def _functions(tools: Sequence[Tool]) -> Marks:
    yield from _marked(HOW_TO_CALL)
    yield Piece("\n".join(_json(tool["function"]) for tool in tools) + "\n</functions>\n")


def _dsml_calls(calls: Sequence[Mapping[str, Any]]) -> Marks:
    if not calls:
        return
    yield from _marked(f"\n\n<{DSML}function_calls>\n")
    for call in calls:
        yield from (*_marked(f'<{DSML}invoke name="'), Piece(call["function"]["name"]), Piece('">\n'))
        for i, (key, value) in enumerate(_object(call).items()):
            kind, text = ("true", value) if isinstance(value, str) else ("false", _json(value))
            yield from (Piece("\n" if i else ""), *_marked(f'<{DSML}parameter name="'), Piece(key))
            yield from (Piece(f'" string="{kind}">'), Piece(text), *_marked(f"</{DSML}parameter>"))
        yield from _marked(f"\n</{DSML}invoke>\n")
    yield from _marked(f"</{DSML}function_calls>")


def _object(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a call, which DSML writes one by one."""
    arguments = call["function"]["arguments"]
    try:
        given = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        given = None
    if not isinstance(given, Mapping):
        raise DataError(f"the arguments of a call to {call['function']['name']} are no JSON object: {arguments!r}")
    return given


def _marked(text: str) -> Marks:
    """Text of this file, in which marks are marks."""
    parts = re.split(f"({DSML}|{THINK_OPEN}|{THINK_CLOSE})", text)
    return (Piece(part, special=i % 2 == 1) for i, part in enumerate(parts))


def _order(messages: Sequence[Message], i: int) -> tuple[int, int]:
    """Which result of how many calls message `i` is."""
    caller = next(k for k in range(i, -1, -1) if messages[k]["role"] != "tool")
    calls = messages[caller].get("tool_calls") or ()
    if messages[caller]["role"] != "assistant" or i - caller > len(calls):
        raise DataError(f"message {i} is the result of a call that no message before it makes")
    return i - caller, len(calls)


def _role_before(messages: Sequence[Message], i: int) -> str:
    """Role of the turn before; system texts are no turns."""
    return next((messages[k]["role"] for k in range(i - 1, -1, -1) if messages[k]["role"] != "system"), "")


def _without_thought(message: Message) -> str:
    content: str = message.get("content") or ""
    return content.split(THINK_CLOSE, 1)[1] if THINK_CLOSE in content else content


def _thought(message: Message) -> str:
    """From `reasoning_content`, or what stands before </think>."""
    inside, closed, _ = (message.get("content") or "").partition(THINK_CLOSE)
    return message.get("reasoning_content") or (inside.removeprefix(THINK_OPEN) if closed else "")


def _arguments(call: Mapping[str, Any]) -> str:
    arguments = call["function"]["arguments"]
    return arguments if isinstance(arguments, str) else _json(arguments)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _mark(text: str) -> Piece:
    return Piece(text, special=True)


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise DataError("a chat needs at least one message")
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(f"message {i} has the role {role!r}; the roles that fit: {', '.join(ROLES)}")
        if not isinstance(content, str) and not (role == "assistant" and content is None):
            raise DataError(f"message {i} ({role}) has content of type {type(content).__name__}; it must be a string")


LAYOUTS: dict[str, Callable[[Sequence[Message], bool, bool, Sequence[Tool]], Marks]] = {
    "v3": _v3,
    "r1": _r1,
    "v3.1": _v31,
    "v3.2": _v32,
}
