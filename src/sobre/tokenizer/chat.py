"""The chat layout: messages to pieces of text and special tokens. Nobody else puts special tokens together.

    bos [system text] <User> text <Assistant><think>\\n thought \\n</think>\\n answer eos

DeepSeek-R1's layout with V3.1's rule for turns without a thought: `<Assistant></think>\\n answer eos`. The thoughts of
assistant turns that a later user message follows are dropped; such turns are context, never trained on. Thought and
answer are stripped of white space at both ends: so the "\\n" that ends the prompt is a token by itself, and prompt ids
followed by completion ids are the ids of the whole.

Where a chat has tools, they stand after the system's text, an answer may end in calls (V3.1's marks, as ordinary
text), each result comes in a turn of its own in the user's place, and no thought is dropped (V4's rule): the model goes
on from what it thought before the call. The end of a result is the next special token, which no result can spell.

A message's text reaches the layout as plain text: a special token spelt inside it stays text.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sobre.errors import DataError
from sobre.tokenizer.special import (
    ASSISTANT,
    BOS,
    CALL_CLOSE,
    CALL_OPEN,
    CALL_SEP,
    CALLS_CLOSE,
    CALLS_OPEN,
    EOS,
    THINK_CLOSE,
    THINK_OPEN,
    TOOL_OUTPUT,
    USER,
)

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant" | "tool", "content": text}; an assistant's turn may also have
"reasoning_content": thought, and "tool_calls" as OpenAI has them: [{"function": {"name", "arguments": JSON text}}]"""
Tool = Mapping[str, Any]
"""As OpenAI writes it: {"type": "function", "function": {"name", optional "description", "parameters": JSON schema}}"""

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Piece:
    """A special token, or text that holds none."""

    text: str
    special: bool = False
    trained: bool = False
    """Whether the loss of a chat counts these tokens."""


def layout(
    messages: Sequence[Message],
    *,
    generation_prompt: bool = False,
    thinking: bool = True,
    tools: Sequence[Tool] = (),
    train_from: int = 0,
    continued: bool = False,
) -> list[Piece]:
    """Lay a chat out. `train_from`: messages before this index are context, not trained on. `continued`: the last one,
    an assistant's, is left open for the model to go on with."""
    check(messages)
    if continued:
        *before, last = messages
        known = layout(before, tools=tools) if before else [Piece(BOS, special=True)]
        return [*known, Piece(ASSISTANT, special=True), *open_turn(last, len(before))]
    last_user = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    if tools:
        last_user = -1  # nothing is dropped
    system = [message["content"] for message in messages if message["role"] == "system"]
    system += [tools_text(tools)] if tools else []
    pieces = [Piece(BOS, special=True), Piece("\n\n".join(system))]
    for i, message in enumerate(messages):
        if message["role"] == "user":
            pieces += [Piece(USER, special=True), Piece(message["content"])]
        elif message["role"] == "tool":
            pieces += [Piece(USER, special=True), Piece(TOOL_OUTPUT + message["content"])]
        elif message["role"] == "assistant":
            thought, answer = split_thought(message, i)
            dropped = bool(thought) and i < last_user
            answer += calls_text(message.get("tool_calls") or ())
            turn = assistant_turn("" if dropped else thought, answer, trained=i >= train_from and not dropped)
            pieces += [Piece(ASSISTANT, special=True), *turn]
    if generation_prompt:
        pieces += [Piece(ASSISTANT, special=True), Piece(THINK_OPEN if thinking else THINK_CLOSE, special=True)]
        pieces.append(Piece("\n"))
    return [piece for piece in pieces if piece.text]


def assistant_turn(thought: str, answer: str, *, trained: bool) -> list[Piece]:
    """What follows `<Assistant>`; the part that a generation prompt gives is not trained on."""
    if not thought:
        opening = [Piece(THINK_CLOSE, special=True), Piece("\n")]
        return [*opening, Piece(answer, trained=trained), Piece(EOS, special=True, trained=trained)]
    return [Piece(THINK_OPEN, special=True), Piece("\n"), *completion(thought, answer, trained=trained)]


def open_turn(message: Message, index: int) -> list[Piece]:
    """An assistant's turn that is not over: inside its answer, or inside its thought when there is no answer yet."""
    if message["role"] != "assistant" or message.get("tool_calls"):
        raise DataError(f"message {index} cannot be continued: only an assistant's text can")
    thought, answer = message.get("reasoning_content") or "", message["content"]
    if answer.startswith(THINK_OPEN) and not thought:
        thought, closed, answer = answer.removeprefix(THINK_OPEN).partition(THINK_CLOSE)
        thought, answer = thought.removeprefix("\n"), answer.removeprefix("\n")
        if closed and not answer:
            raise DataError(f"message {index} cannot be continued: its thought is over and its answer is empty")
    if not thought and not answer:
        raise DataError(f"message {index} cannot be continued: it is empty")
    opening = [Piece(THINK_OPEN if thought else THINK_CLOSE, special=True), Piece("\n")]
    if not answer:
        return [*opening, Piece(thought)]
    ended = [Piece(thought.strip() + "\n"), Piece(THINK_CLOSE, special=True), Piece("\n")] if thought else []
    return [*opening, *ended, Piece(answer)]


def completion(thought: str, answer: str, *, trained: bool = True) -> list[Piece]:
    """What a model that thinks writes after the generation prompt."""
    return [
        Piece(thought + "\n", trained=trained),
        Piece(THINK_CLOSE, special=True, trained=trained),
        Piece("\n" + answer, trained=trained),
        Piece(EOS, special=True, trained=trained),
    ]


def tools_text(tools: Sequence[Tool]) -> str:
    """What the system's text says about the tools: one line of JSON each, and how to call them."""
    lines = [json.dumps(dict(tool), ensure_ascii=False) for tool in tools]
    how = f"{CALLS_OPEN}{CALL_OPEN}name{CALL_SEP}arguments as JSON{CALL_CLOSE}{CALLS_CLOSE}"
    return "\n".join(["Tools:", *lines, f"To call some, end the answer with {how}"])


def calls_text(calls: Sequence[Mapping[str, Any]]) -> str:
    """The calls at the end of an answer; "" for none."""
    if not calls:
        return ""
    functions = [call["function"] for call in calls]
    inside = [f"{CALL_OPEN}{one['name']}{CALL_SEP}{one['arguments']}{CALL_CLOSE}" for one in functions]
    return "".join([CALLS_OPEN, *inside, CALLS_CLOSE])


def split_thought(message: Message, index: int = 0) -> tuple[str, str]:
    """Thought and answer of an assistant message: from `reasoning_content`, or <think>...</think> at its start."""
    content = message["content"].strip()
    thought = (message.get("reasoning_content") or "").strip()
    if not content.startswith(THINK_OPEN):
        return thought, content
    if thought:
        raise DataError(f"message {index} (assistant) gives its thought twice: in reasoning_content and in content")
    inside, closed, answer = content.removeprefix(THINK_OPEN).partition(THINK_CLOSE)
    if not closed:
        raise DataError(f"message {index} (assistant) opens {THINK_OPEN} and never closes it with {THINK_CLOSE}")
    return inside.strip(), answer.strip()


def check(messages: Sequence[Message]) -> None:
    """Refuse what the layout cannot hold."""
    if not messages:
        raise DataError("a chat needs at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise DataError(f"message {i} is of type {type(message).__name__}; it must have a role and content")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(f"message {i} has the role {role!r}; the roles that fit: {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise DataError(f"message {i} ({role}) has content of type {type(content).__name__}; it must be a string")
        if not isinstance(message.get("reasoning_content") or "", str):
            raise DataError(f"message {i} ({role}) has reasoning_content that is not a string")
        check_calls(message.get("tool_calls") or (), role, i)
        if role == "system" and i and messages[i - 1]["role"] != "system":
            raise DataError(f"message {i} is a system message after the chat began; system messages come first")


def check_calls(calls: Any, role: str, index: int) -> None:
    """Refuse calls that are none, or not the assistant's."""
    if calls and role != "assistant":
        raise DataError(f"message {index} ({role}) calls tools, which only the assistant does")
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not all(
            isinstance(function.get(key), str) for key in ("name", "arguments")
        ):
            raise DataError(
                f"message {index} ({role}) has a tool call without a function's name and arguments (both strings)"
            )


# The same rules for `transformers`, vLLM and llama.cpp, which parse special tokens in the rendered text themselves.
TEMPLATE = """\
{%- set state = namespace(last_user=-1, system=false) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' and not tools -%}{%- set state.last_user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- bos_token -}}
{%- for message in messages if message['role'] == 'system' -%}
  {%- if not loop.first -%}{{- '\\n\\n' -}}{%- endif -%}
  {%- set state.system = true -%}
  {{- message['content'] -}}
{%- endfor -%}
{%- if tools -%}
  {{- '\\n\\nTools:' if state.system else 'Tools:' -}}
  {%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
  {{- '\\nTo call some, end the answer with <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>name<｜tool▁sep｜>' -}}
  {{- 'arguments as JSON<｜tool▁call▁end｜><｜tool▁calls▁end｜>' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}
    {%- if not loop.first -%}
      {%- if messages[loop.index0 - 1]['role'] != 'system' -%}
        {{- raise_exception('system messages come first') -}}
      {%- endif -%}
    {%- endif -%}
  {%- elif message['role'] == 'user' -%}
    {{- '<｜User｜>' + message['content'] -}}
  {%- elif message['role'] == 'tool' -%}
    {{- '<｜User｜><｜tool▁output▁begin｜>' + message['content'] -}}
  {%- elif message['role'] == 'assistant' -%}
    {%- set content = message['content'] | trim -%}
    {%- set thought = (message['reasoning_content'] or '') | trim -%}
    {%- if content.startswith('<think>') -%}
      {%- if thought -%}{{- raise_exception('the thought is given twice') -}}{%- endif -%}
      {%- if '</think>' not in content -%}{{- raise_exception('<think> is never closed') -}}{%- endif -%}
      {%- set parts = content.split('</think>') -%}
      {%- set thought = parts[0][7:] | trim -%}
      {%- set content = parts[1:] | join('</think>') | trim -%}
    {%- endif -%}
    {%- if message['tool_calls'] -%}
      {%- set state.calls = '' -%}
      {%- for call in message['tool_calls'] -%}
        {%- set arguments = call['function']['arguments'] -%}
        {%- set arguments = arguments if arguments is string else arguments | tojson -%}
        {%- set called = '<｜tool▁call▁begin｜>' + call['function']['name'] + '<｜tool▁sep｜>' + arguments -%}
        {%- set state.calls = state.calls + called + '<｜tool▁call▁end｜>' -%}
      {%- endfor -%}
      {%- set content = content + '<｜tool▁calls▁begin｜>' + state.calls + '<｜tool▁calls▁end｜>' -%}
    {%- endif -%}
    {{- '<｜Assistant｜>' -}}
    {%- if thought and loop.index0 > state.last_user -%}
      {{- '<think>\\n' + thought + '\\n</think>\\n' + content + eos_token -}}
    {%- else -%}
      {{- '</think>\\n' + content + eos_token -}}
    {%- endif -%}
  {%- else -%}
    {{- raise_exception('the roles that fit: system, user, assistant, tool') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<｜Assistant｜><think>\\n' if thinking is not defined or thinking else '<｜Assistant｜></think>\\n' -}}
{%- endif -%}
"""

EARLIER = {"e37a8532d3a1faaa9d34196bf07b39829f7dfa151483c0bf09b86a78c2f80cf0"}
"""SHA-256 of templates that folders of ours may hold: this layout before it had tools."""


def is_ours(template: str) -> bool:
    """Whether a folder's template is this layout."""
    return template == TEMPLATE or hashlib.sha256(template.encode()).hexdigest() in EARLIER
