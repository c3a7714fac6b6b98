"""The chat layout: messages to pieces of text and special tokens. Nobody else puts special tokens together.

    bos [system text] <User> text <Assistant><think>\\n thought \\n</think>\\n answer eos

DeepSeek-R1's layout with V3.1's rule for turns without a thought: `<Assistant></think>\\n answer eos`. The thoughts of
assistant turns that a later user message follows are dropped; such turns are context, never trained on. Thought and
answer are stripped of white space at both ends: so the "\\n" that ends the prompt is a token by itself, and prompt ids
followed by completion ids are the ids of the whole.

A message's text reaches the layout as plain text: a special token spelt inside it stays text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sobre.errors import DataError
from sobre.tokenizer.special import ASSISTANT, BOS, EOS, THINK_CLOSE, THINK_OPEN, USER

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant", "content": text, optional "reasoning_content": thought}"""

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Piece:
    """A special token, or text that holds none."""

    text: str
    special: bool = False
    trained: bool = False
    """Whether the loss of a chat counts these tokens."""


def layout(
    messages: Sequence[Message], *, generation_prompt: bool = False, thinking: bool = True, train_from: int = 0
) -> list[Piece]:
    """Lay a chat out. `train_from`: messages before this index are context, not trained on."""
    check(messages)
    last_user = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    system = [message["content"] for message in messages if message["role"] == "system"]
    pieces = [Piece(BOS, special=True), Piece("\n\n".join(system))]
    for i, message in enumerate(messages):
        if message["role"] == "user":
            pieces += [Piece(USER, special=True), Piece(message["content"])]
        elif message["role"] == "assistant":
            thought, answer = split_thought(message, i)
            dropped = bool(thought) and i < last_user
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


def completion(thought: str, answer: str, *, trained: bool = True) -> list[Piece]:
    """What a model that thinks writes after the generation prompt."""
    return [
        Piece(thought + "\n", trained=trained),
        Piece(THINK_CLOSE, special=True, trained=trained),
        Piece("\n" + answer, trained=trained),
        Piece(EOS, special=True, trained=trained),
    ]


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
        if message.get("tool_calls"):
            raise DataError(f"message {i} ({role}) calls tools, which this layout has no tokens for yet")
        if role == "system" and i and messages[i - 1]["role"] != "system":
            raise DataError(f"message {i} is a system message after the chat began; system messages come first")


# The same rules for `transformers`, vLLM and llama.cpp, which parse special tokens in the rendered text themselves.
TEMPLATE = """\
{%- set state = namespace(last_user=-1) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{%- set state.last_user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}
    {%- if not loop.first -%}
      {%- if messages[loop.index0 - 1]['role'] != 'system' -%}
        {{- raise_exception('system messages come first') -}}
      {%- endif -%}
      {{- '\\n\\n' -}}
    {%- endif -%}
    {{- message['content'] -}}
  {%- elif message['role'] == 'user' -%}
    {{- '<｜User｜>' + message['content'] -}}
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
    {{- '<｜Assistant｜>' -}}
    {%- if thought and loop.index0 > state.last_user -%}
      {{- '<think>\\n' + thought + '\\n</think>\\n' + content + eos_token -}}
    {%- else -%}
      {{- '</think>\\n' + content + eos_token -}}
    {%- endif -%}
  {%- else -%}
    {{- raise_exception('the roles that fit: system, user, assistant') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<｜Assistant｜><think>\\n' if thinking is not defined or thinking else '<｜Assistant｜></think>\\n' -}}
{%- endif -%}
"""
