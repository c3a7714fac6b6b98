"""Token ids to what a reader sees: the thought, then the answer.

Our generation prompt ends with `<think>` and a newline, so an answer starts inside the thought and the special token
`</think>` ends it; models of other layouts open the thought themselves, or have none, and where the vocabulary has no
token for the tags they are found by their spelling (tags.py). Rules for white space: of the
layout `<think>\\n thought \\n</think>\\n answer` the newlines beside the tags, one on each side, are layout and are
dropped; every other character is passed on as it is. In a thought that `</think>` never ends everything is thought and
the answer is empty. Special tokens never show as text, wherever they come. Stop strings are looked for in the answer
alone, never in the thought, across the borders of tokens; neither the stop string nor what follows is passed on. Where
the request has tools, the answer ends with the calls that it makes (tool_calls.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sobre.errors import CheckpointError
from sobre.serve.tags import SpelledTags, Tag, opened_by
from sobre.tokenizer.stream import Detokenizer
from sobre.tokenizer.thoughts import think_ids
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.tokenizer.tool_calls import CallArguments, CallReader, CallStart, overlap

Kind = Literal["reasoning", "content"]
PROMPT_END = 16
"""Tokens of a prompt in which a tag that is no token is looked for."""


@dataclass(frozen=True)
class Delta:
    """A piece of text and what it is part of; never empty."""

    kind: Kind
    text: str


Shown = Delta | CallStart | CallArguments


class AnswerReader:
    """Reads one answer token by token; `push` and `close` return what can be shown so far.

    `tools`: the answer may end in calls. `thoughts=False`: text that continues a text, where a tag is only a tag.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        stop: Sequence[str] = (),
        *,
        tools: bool = False,
        thoughts: bool = True,
    ) -> None:
        self._open_id, self._close_id = think_ids(tokenizer)
        self._hidden = tokenizer.special_ids | {self._open_id, self._close_id}
        self._stop = tuple(stop)
        self._tokenizer, self._detokenizer = tokenizer, Detokenizer(tokenizer)
        self._held = ""  # characters that may yet turn out to be layout or the beginning of a stop string
        self._at_border = False  # the next newline belongs to the tag before it
        tags = [token for token in prompt_ids if token in (self._open_id, self._close_id)]
        self.kind: Kind = "reasoning" if thoughts and tags and tags[-1] == self._open_id else "content"
        self.calls = CallReader() if tools else None
        self._tags: SpelledTags | None = None
        if thoughts and self._open_id < 0:
            inside = opened_by(tokenizer.decode(prompt_ids[-PROMPT_END:]))
            self.kind, self._tags = "reasoning" if inside else "content", SpelledTags(inside=inside)
        self._may_open = thoughts and self.kind == "content"  # the model may open the one thought, before all else
        self.stopped = False
        """A stop string came: the answer is complete."""
        self.stopped_by: str | None = None
        """Which one."""
        self.n_tokens = 0
        self.n_reasoning = 0
        """Tokens of the thought, its tags included."""

    def push(self, token_id: int) -> list[Shown]:
        """Take the next token."""
        assert not self.stopped, "the answer is complete"
        self.n_tokens += 1
        if token_id == self._open_id and self._may_open:
            self.kind, self._at_border, self._may_open = "reasoning", True, False
        self.n_reasoning += self.kind == "reasoning"
        if token_id == self._close_id and self.kind == "reasoning":
            return self._end_thought()
        if token_id in self._hidden:
            return []
        return self._read(self._detokenizer.push(token_id))

    def shows(self, token_id: int) -> bool:
        """Whether this next token is part of the answer's text; tags, ends and the thought are not."""
        return (
            self.kind == "content"
            and not (self._at_border and self._is_newline(token_id))
            and token_id not in self._hidden
        )

    def _is_newline(self, token_id: int) -> bool:
        return self._tokenizer.token_bytes(token_id) == b"\n"

    @property
    def called(self) -> bool:
        """The answer ended in complete calls."""
        return self.calls is not None and 0 < self.calls.n_calls == self.calls.n_complete

    def close(self) -> list[Shown]:
        """The engine has finished: pass on what was held back."""
        if self.stopped:
            return []
        shown = self._read(self._detokenizer.flush())
        if self._tags is not None and not self.stopped:
            shown += self._show(self._tags.close())
        if self.calls is not None and self.kind == "content" and (rest := self.calls.close()):
            self._held += rest
        if self._held and not self.stopped:
            shown.append(Delta(self.kind, self._held))
            self._held = ""
        return shown

    def _read(self, text: str) -> list[Shown]:
        """Text of the model, in which tags may be spelt."""
        if self._tags is None:
            return self._show(text)
        shown: list[Shown] = []
        for item in self._tags.push(text):
            if item is Tag.OPEN:
                self.kind, self._at_border, self._may_open = "reasoning", True, False
                self.n_reasoning = self.n_tokens
            elif item is Tag.CLOSE:
                self._held, self.kind, self._at_border = "", "content", True
            elif isinstance(item, str) and not self.stopped:
                shown += self._show(item)
        return shown

    def _end_thought(self) -> list[Shown]:
        shown = self._show(self._detokenizer.flush())
        self._held = ""  # at most the newline before </think>
        self.kind, self._at_border = "content", True
        return shown

    def _show(self, text: str) -> list[Shown]:
        if text and self._at_border:
            self._at_border = False
            text = text.removeprefix("\n")
        if not text:
            return []
        if self.kind == "reasoning":
            text = self._hold_newline(text)
            return [Delta("reasoning", text)] if text else []
        if self.calls is None:
            return self._answer(text)
        shown: list[Shown] = []
        for item in self.calls.push(text):
            if isinstance(item, str):
                shown += self._answer(item)
            else:
                held, self._held = self._held, ""
                shown += [Delta("content", held), item] if held else [item]
            if self.stopped:
                break
        return shown

    def _answer(self, text: str) -> list[Shown]:
        text = self._hold_stop(text)
        return [Delta("content", text)] if text else []

    def _hold_newline(self, text: str) -> str:
        text, self._held = self._held + text, ""
        if text.endswith("\n"):
            text, self._held = text[:-1], "\n"
        return text

    def _hold_stop(self, text: str) -> str:
        self._may_open = False
        text, self._held = self._held + text, ""
        found = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if found:
            at, self.stopped_by = min(found)
            self.stopped = True
            return text[:at]
        held = max((overlap(text, stop) for stop in self._stop), default=0)
        if held:
            text, self._held = text[:-held], text[-held:]
        return text


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer: the end itself and, where there is one, the mark of the user's next turn."""
    try:
        return tokenizer.eos_id, tokenizer.user_id
    except CheckpointError:
        return (tokenizer.eos_id,)
