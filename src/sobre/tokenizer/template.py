"""Chat templates of models made elsewhere, rendered in a sandbox, with special tokens kept out of reach of the text.

The environment is the one `transformers` documents for chat templates: blocks trimmed, loop controls, `tojson` without
ASCII escapes, `raise_exception`, and `{% generation %}` (which marks the assistant's text for training) transparent.
There is no clock in it, so a rendering depends on its arguments alone.

A rendered template is one string, where a special token of the template and the same spelling in a user's message look
alike. So spellings inside messages (or parts of one at an end of a message) are first broken by a mark, a private-use
character that no message holds; the rendered text is cut at the unbroken ones; and the marks are taken out again.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sobre.errors import DataError
from sobre.tokenizer.chat import Message, Piece
from sobre.tokenizer.special import THINK_CLOSE, THINK_OPEN

ROLES = ("system", "developer", "user", "assistant", "tool")


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` renders as what it encloses."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(template: str, **variables: Any) -> str:
    """Render a template; an error of the template is a DataError with the template's own words."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise
    try:
        return env.from_string(template).render(**variables)
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise DataError(f"the model's chat template refuses this chat: {error}") from error


def pieces(template: str, messages: Sequence[Message], specials: Iterable[str], **variables: Any) -> list[Piece]:
    """Render a chat and cut it at the special tokens that the template wrote."""
    names = sorted(specials, key=len, reverse=True)
    mark = _unused_character(messages)
    hidden = [_without_specials(message, names, mark) for message in messages]
    text = render(template, messages=hidden, **variables)
    if not names:
        return [Piece(text.replace(mark, ""))]
    parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
    cuts = [Piece(part.replace(mark, ""), special=i % 2 == 1) for i, part in enumerate(parts)]
    return [piece for piece in cuts if piece.text]


def _without_specials(message: Message, names: Sequence[str], mark: str) -> dict[str, Any]:
    """The message with its special tokens broken; an assistant may mark its thought. Role and field names stay."""
    role = message.get("role")
    if role not in ROLES:
        raise DataError(f"a message has the role {role!r}; the roles that fit: {', '.join(ROLES)}")
    spared = (THINK_OPEN, THINK_CLOSE) if role == "assistant" else ()
    broken = [name for name in names if name not in spared]
    hidden = {key: value if key == "role" else _break(value, broken, mark) for key, value in message.items()}
    for field in ("content", "reasoning_content"):
        if isinstance(hidden.get(field), str):
            hidden[field] = _guard_borders(hidden[field], names, mark)
    return hidden


def _break(value: Any, names: Sequence[str], mark: str) -> Any:
    """Put the mark into every special token spelt in `value`, after its first character."""
    if isinstance(value, str):
        for name in names:
            value = value.replace(name, name[0] + mark + name[1:])
        return value
    if isinstance(value, Mapping):
        return {_break(key, names, mark): _break(inner, names, mark) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_break(inner, names, mark) for inner in value]
    return value


def _guard_borders(text: str, names: Sequence[str], mark: str) -> str:
    """Put the mark where the visible text is part of a special token that the template's own text could complete."""
    visible = text.strip()
    if not visible:
        return text
    if any(visible in name or any(visible.startswith(name[i:]) for i in range(1, len(name))) for name in names):
        text = text.replace(visible, mark + visible, 1)
    if any(visible.endswith(name[:i]) for name in names for i in range(1, len(name))):
        text = text.rstrip() + mark + text[len(text.rstrip()) :]
    return text


def _unused_character(messages: Sequence[Message]) -> str:
    text = json.dumps(list(messages), ensure_ascii=False, default=str)
    return next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> None:
    raise TemplateError(message)
