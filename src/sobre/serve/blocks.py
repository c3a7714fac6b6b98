"""An answer of one choice as a row of blocks, one after another: a thought, text, calls.

Anthropic's messages and OpenAI's responses are both written so; they differ in the names.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from sobre.serve.answer import Event, Finish
from sobre.tokenizer.tool_calls import CallArguments, CallStart


@dataclass
class Block:
    """A part of the answer; `text` grows while it is being written, and holds the arguments of a call."""

    index: int
    kind: Literal["reasoning", "content", "call"]
    text: str = ""
    call: CallStart | None = None


@dataclass(frozen=True)
class Opened:
    block: Block


@dataclass(frozen=True)
class Grown:
    block: Block
    text: str


@dataclass(frozen=True)
class Closed:
    block: Block


Step = Opened | Grown | Closed | Finish


async def as_blocks(events: AsyncIterator[tuple[int, Event]], *, thoughts: bool) -> AsyncIterator[Step]:
    """The steps of an answer, its Finish last; `thoughts`: whether thoughts are shown."""
    block: Block | None = None
    n_blocks = 0
    async for _, event in events:
        if isinstance(event, Finish):
            if block is not None:
                yield Closed(block)
            yield event
            return
        shown = event.shown
        call = shown if isinstance(shown, CallStart) else None
        kind = "call" if isinstance(shown, CallStart | CallArguments) else shown.kind
        if kind == "reasoning" and not thoughts:
            continue
        if call is not None or block is None or block.kind != kind:
            if block is not None:
                yield Closed(block)
            block = Block(n_blocks, kind, call=call)
            n_blocks += 1
            yield Opened(block)
        if not isinstance(shown, CallStart):
            block.text += shown.text
            yield Grown(block, shown.text)
