"""What a row must hold to be a document or a chat; anything else is reported to the events."""

import re
from typing import Any

from sobre.data.config import DataConfig
from sobre.data.events import Events
from sobre.data.rows import BOM, without_bom
from sobre.errors import DataError
from sobre.tokenizer.chat import Message, layout

_SURROGATE = re.compile("[\ud800-\udfff]")


def text_of(row: dict[str, Any], where: str, cfg: DataConfig, events: Events) -> str | None:
    """The text of a row, or None."""
    text = row.get(cfg.text_field)
    if isinstance(text, str):
        return without_bom(text, where, events) if is_good_text(text, where, cfg, events) else None
    if cfg.text_field not in row and cfg.messages_field in row:
        reason = f"the row is a chat ({cfg.messages_field!r}), not a text"
    else:
        reason = _misfit(cfg.text_field, text)
    events.reject("wrong fields", where, reason, f"a string in the field {cfg.text_field!r}")
    return None


def messages_of(row: dict[str, Any], where: str, cfg: DataConfig, events: Events) -> list[Message] | None:
    """The messages of a row, or None."""
    messages = row.get(cfg.messages_field)
    if not isinstance(messages, list):
        fits = f'a list of {{"role", "content"}} in the field {cfg.messages_field!r}'
        events.reject("wrong fields", where, _misfit(cfg.messages_field, messages), fits)
        return None
    try:
        pieces = layout(messages)
    except DataError as error:
        events.reject("wrong chat", where, str(error), "system messages, then user and assistant messages of text")
        return None
    if not any(piece.trained for piece in pieces):
        events.reject("wrong chat", where, "no assistant message to learn from", "a chat with an answer")
        return None
    return messages if all(_is_unicode(piece.text, where, events) for piece in pieces) else None


def labels_of(
    row: dict[str, Any], default_source: str, where: str, cfg: DataConfig, events: Events
) -> tuple[str, str] | None:
    """Source and language of a row, or None."""
    labels = []
    for name, default in ((cfg.source_field, default_source), (cfg.lang_field, "")):
        value = row.get(name)
        if not isinstance(value, str | None):
            events.reject("wrong fields", where, _misfit(name, value), "a string, or no such field")
            return None
        if value and not _is_unicode(value, where, events):
            return None
        labels.append(value or default)
    return labels[0], labels[1]


def is_good_text(text: str, where: str, cfg: DataConfig, events: Events) -> bool:
    """Whether there is something to read in the text, and nothing that no text file can hold."""
    if not text.removeprefix(BOM).strip():
        events.reject("empty text", where, "the text is empty", "at least one visible character")
        return False
    if len(text) > cfg.max_record_bytes:
        reason = f"the text is longer than data.max_record_bytes = {cfg.max_record_bytes:,}"
        events.reject("too long", where, reason, "shorter texts, or a larger limit")
        return False
    return _is_unicode(text, where, events)


def _misfit(name: str, value: Any) -> str:
    return f"the field {name!r} is missing" if value is None else f"the field {name!r} is a {type(value).__name__}"


def _is_unicode(text: str, where: str, events: Events) -> bool:
    if "\0" in text:
        reason = f"a NUL at character {text.index(chr(0)):,}"
        events.reject("NUL", where, reason, "text without NULs (is it a binary or UTF-16 file?)")
        return False
    if not text.isascii() and (found := _SURROGATE.search(text)):
        reason = f"the lone surrogate U+{ord(found[0]):04X} at character {found.start():,}"
        events.reject("lone surrogate", where, reason, "whole characters")
        return False
    return True
