"""A thought by the spelling of its tags, for vocabularies that have no token for `<think>` and `</think>`.

Tokens may cut a tag anywhere. An answer has at most one thought, before all else but white space; a tag that comes
later is text, as it is where the tags are tokens.
"""

from enum import Enum

from sobre.tokenizer.tool_calls import overlap


class Tag(Enum):
    """Where a thought begins and ends."""

    OPEN = "<think>"
    CLOSE = "</think>"


class SpelledTags:
    """Finds the tags in text that comes in pieces; `inside`: the prompt has opened the thought."""

    def __init__(self, *, inside: bool) -> None:
        self._wanted: Tag | None = Tag.CLOSE if inside else Tag.OPEN
        self._held = ""  # what may yet turn out to be a tag

    def push(self, text: str) -> list[str | Tag]:
        """The text that is clear by now, with its tags in their places."""
        self._held += text
        found: list[str | Tag] = []
        if self._wanted is Tag.OPEN:
            begun = self._held.lstrip()
            if begun != Tag.OPEN.value and Tag.OPEN.value.startswith(begun):
                return []
            if begun.startswith(Tag.OPEN.value):
                found.append(Tag.OPEN)
                self._held, self._wanted = begun.removeprefix(Tag.OPEN.value), Tag.CLOSE
            else:
                self._wanted = None
        if self._wanted is Tag.CLOSE:
            thought, tag, rest = self._held.partition(Tag.CLOSE.value)
            if not tag:
                clear = len(thought) - overlap(thought, Tag.CLOSE.value)
                self._held = thought[clear:]
                return [*found, thought[:clear]]
            found += [thought, Tag.CLOSE]
            self._held, self._wanted = rest, None
        found.append(self._held)
        self._held = ""
        return found

    def close(self) -> str:
        """What was held back, at the end of the answer."""
        rest, self._held, self._wanted = self._held, "", None
        return rest


def opened_by(prompt: str) -> bool:
    """Whether this end of a prompt leaves a thought open."""
    return prompt.rstrip().endswith(Tag.OPEN.value)
