"""Tool calls in an answer's text: where the text ends, what is called, and with which arguments.

Four layouts, told apart by their marks:

    DeepSeek-V3.1  <｜tool▁calls▁begin｜> calls <｜tool▁calls▁end｜>, each call
                   <｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}<｜tool▁call▁end｜>
    DeepSeek-V3    the same, with function<｜tool▁sep｜>name and the arguments in a ```json block
    DeepSeek-V3.2  <｜DSML｜function_calls> calls </｜DSML｜function_calls> (two newlines before are no text), each call
                   <｜DSML｜invoke name="name"> parameters </｜DSML｜invoke>, each parameter
                   <｜DSML｜parameter name="x" string="true|false">text, or JSON</｜DSML｜parameter>
    Hermes, Qwen3  <tool_call> newline {"name": "...", "arguments": {...}} newline </tool_call>

Arguments of the first layout are passed on as they come; those of the others when their call is complete.
"""

import json
import re
import secrets
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from sobre.tokenizer.special import CALL_CLOSE, CALL_OPEN, CALL_SEP, CALLS_CLOSE, CALLS_OPEN, DSML

HERMES_OPEN, HERMES_CLOSE = "<tool_call>", "</tool_call>"
DSML_OPEN, DSML_CLOSE = f"<{DSML}function_calls>", f"</{DSML}function_calls>"
INVOKE_OPEN, INVOKE_CLOSE = f'<{DSML}invoke name="', f"</{DSML}invoke>"
PARAMETER = re.compile(f'<{DSML}parameter name="(.*?)" string="(true|false)">(.*?)</{DSML}parameter>', re.DOTALL)
OPENS = (CALLS_OPEN, f"\n\n{DSML_OPEN}", DSML_OPEN, HERMES_OPEN)
"""What ends the plain text."""
CALLS = ((CALL_OPEN, CALL_CLOSE), (INVOKE_OPEN, INVOKE_CLOSE), (HERMES_OPEN, HERMES_CLOSE))
LONGEST = max(len(opens) for opens, _ in CALLS)


@dataclass(frozen=True)
class CallStart:
    """A call begins."""

    index: int
    """0 for the first call of the answer."""
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's arguments, which are JSON text."""

    index: int
    text: str


class CallReader:
    """Splits an answer's text, piece by piece, into plain text and calls."""

    def __init__(self) -> None:
        self._held = ""
        self._close = ""  # the mark that ends the call being read; "" between calls
        self._streaming = False  # inside the arguments of the first layout
        self.in_calls = False
        """The plain text is over."""
        self.n_calls = 0
        """Calls begun."""
        self.n_complete = 0

    def push(self, text: str) -> Iterator[str | CallStart | CallArguments]:
        """What this piece of text completes."""
        self._held += text
        while self._held:
            if self._streaming:
                before, closed, after = self._held.partition(self._close)
                keep = 0 if closed else overlap(before, self._close)
                if len(before) > keep:
                    yield CallArguments(self.n_calls - 1, before[: len(before) - keep])
                if not closed:
                    self._held = before[len(before) - keep :]
                    return
                self._end(after)
            elif self._close:
                if not (yield from self._whole_call()):
                    return
            elif self.in_calls:
                if not self._next_call():
                    return
            elif not (yield from self._plain()):
                return

    def close(self) -> str:
        """The answer has ended: plain text that was held back."""
        held, self._held = self._held, ""
        return "" if self.in_calls else held

    def _plain(self) -> Generator[str, None, bool]:
        """Text before any call; true when a call begins."""
        found = min(((self._held.find(mark), mark) for mark in OPENS if mark in self._held), default=None)
        if found is None:
            keep = max(overlap(self._held, mark) for mark in OPENS)
            shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
            if shown:
                yield shown
            return False
        at, mark = found
        shown = self._held[:at]
        self._held = self._held[at + len(mark) :]
        self.in_calls = True
        self._close = HERMES_CLOSE if mark == HERMES_OPEN else ""
        if shown.strip():
            yield shown
        return True

    def _next_call(self) -> bool:
        """Between calls: true when one begins."""
        for mark, close in CALLS:
            if mark in self._held:
                self._held = self._held.partition(mark)[2]
                self._close = close
                return True
        self._held = self._held.rpartition(CALLS_CLOSE)[2][-LONGEST:]
        return False

    def _whole_call(self) -> Generator[CallStart | CallArguments, None, bool]:
        """The head of a call, or all of one that cannot be passed on in pieces; true when something was read."""
        name, separated, rest = self._held.partition(CALL_SEP)
        if self._close == CALL_CLOSE and separated and name.strip() != "function":
            yield self._start(name.strip())
            self._held, self._streaming = rest, True
            return True
        inside, closed, after = self._held.partition(self._close)
        if not closed:
            return False
        if self._close == HERMES_CLOSE:
            name, arguments = read_hermes(inside)
        elif self._close == INVOKE_CLOSE:
            name, arguments = read_dsml(inside)
        else:
            name, _, block = inside.partition(CALL_SEP)[2].partition("\n")
            arguments = block.strip().removeprefix("```json").removesuffix("```").strip()
        start = self._start(name.strip())
        yield start
        yield CallArguments(start.index, arguments)
        self._end(after)
        return True

    def _start(self, name: str) -> CallStart:
        self.n_calls += 1
        return CallStart(self.n_calls - 1, f"call_{secrets.token_hex(12)}", name)

    def _end(self, rest: str) -> None:
        self.n_complete += 1
        self._held, self._close, self._streaming = rest, "", False


def read_hermes(text: str) -> tuple[str, str]:
    """Name and arguments of {"name": ..., "arguments": ...}; what is no such object has its text as arguments."""
    try:
        call = json.loads(text)
        return str(call["name"]), json.dumps(call.get("arguments", {}), ensure_ascii=False)
    except (ValueError, TypeError, KeyError, AttributeError):
        return "", text.strip()


def read_dsml(text: str) -> tuple[str, str]:
    """Name and arguments of a call, from after `name="`; a parameter that is no string is JSON as it was written."""
    name, _, parameters = text.partition('">')
    arguments = (
        f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False) if kind == 'true' else value}"
        for key, kind, value in PARAMETER.findall(parameters)
    )
    return name, f"{{{', '.join(arguments)}}}"


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` with which `mark` begins."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0)
