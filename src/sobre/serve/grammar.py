"""What an answer may look like: JSON, a JSON schema, a pattern, tool calls, as a mask over the next token (llguidance).

The grammar begins where the thought ends. A mask is a pure function of the answer so far: the matcher follows it from
what it has seen before, back where a speculated token was taken back, so it works together with speculation.

Compiled grammars are kept by their text, the latest `MAX_KEPT` and of them no more than `MAX_KEPT_CHARS` of text;
nothing is written to disk and no reference outside the schema is followed.

llguidance is an extra. Without it a server answers all but what needs a grammar, which is refused by name.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sobre.errors import CheckpointError
from sobre.serve.errors import invalid
from sobre.tokenizer.special import CALL_CLOSE, CALL_OPEN, CALL_SEP, CALLS_CLOSE, CALLS_OPEN
from sobre.tokenizer.tokenizer import Tokenizer

try:
    import llguidance
except ModuleNotFoundError:
    llguidance = None  # type: ignore[assignment]

WITHOUT = (
    "JSON, schemas, patterns and calls of tools need llguidance, which is not installed here:"
    " pip install 'sobre[grammar]'"
)

MAX_KEPT = 64
"""Compiled grammars."""
MAX_KEPT_CHARS = 4_000_000
"""Of their texts together: what a grammar takes grows with its text."""
MAX_DEPTH = 64
"""Nesting of a schema."""
MAX_CHARS = 100_000
"""Of a schema, as JSON."""
MAX_GRAMMAR, MAX_LEXER_STATES = 100_000, 50_000

ANY_JSON = {"type": "object"}
"""What `response_format: {"type": "json_object"}` asks for."""


class Grammars:
    """The grammars of one vocabulary."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        """Of the model: masks are this long, whatever the tokenizer leaves unused."""
        self.close_id = _close_id(tokenizer)
        self._kept: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        if llguidance is not None:
            words = llguidance.TokenizerWrapper(_Vocabulary(tokenizer))
            self._tokenizer = llguidance.LLTokenizer(words, n_vocab=n_vocab, slices=[])
            self._limits = llguidance.LLParserLimits(
                verbose_errors=False, max_grammar_size=MAX_GRAMMAR, max_lexer_states=MAX_LEXER_STATES
            )

    def matcher(self, source: str, param: str) -> "llguidance.LLMatcher":
        """A matcher of one's own for a grammar; a 400 that names `param` when it is none."""
        with self._lock:
            kept = self._kept.get(source)
            if kept is not None:
                self._kept.move_to_end(source)
        if kept is None:
            kept = llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
            if kept.is_error():
                why = " ".join(kept.get_error().partition("\n   1 |")[0].split())[:300]
                raise invalid(f"'{param}' cannot be used as a grammar: {why}.", param, "bad_grammar")
            with self._lock:
                self._kept[source] = kept
                while len(self._kept) > MAX_KEPT or sum(map(len, self._kept)) > MAX_KEPT_CHARS:
                    self._kept.popitem(last=False)
        return kept.deep_copy()

    def mask(self, source: str, param: str, *, in_thought: bool, stop_ids: Sequence[int]) -> "GrammarMask":
        """What the engine asks for the next token; `in_thought`: the answer begins inside a thought."""
        thought_V = torch.ones(self.n_vocab, dtype=torch.bool)
        thought_V[list(stop_ids)] = False  # an answer that ended in its thought would follow no grammar
        return GrammarMask(self.matcher(source, param), self.close_id if in_thought else None, thought_V)


class GrammarMask:
    """Which tokens may follow an answer; one for each choice of each request."""

    def __init__(self, matcher: "llguidance.LLMatcher", close_id: int | None, thought_V: Tensor) -> None:
        self._matcher, self._close_id, self._thought_V = matcher, close_id, thought_V
        self._begins = 0 if close_id is None else None
        self._seen: list[int] = []
        self._words = np.zeros((len(thought_V) + 31) // 32, dtype=np.int32)

    def __call__(self, answer: Sequence[int]) -> Tensor:
        """allowed_V; while the thought goes on, all but the ends of an answer."""
        begins = self._where(answer)
        if begins is None:
            return self._thought_V
        self._follow(answer[begins:])
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little")
        return torch.from_numpy(bits[: len(self._thought_V)].astype(np.bool_))

    def _where(self, answer: Sequence[int]) -> int | None:
        """Where the grammar begins in this answer; None while the thought is open."""
        if self._close_id is None:
            return 0
        if self._begins is None or self._begins > len(answer) or answer[self._begins - 1] != self._close_id:
            self._begins = next((i + 1 for i, token in enumerate(answer) if token == self._close_id), None)
        return self._begins

    def _follow(self, text: Sequence[int]) -> None:
        """Bring the matcher to the end of `text`."""
        same = next((i for i, (a, b) in enumerate(zip(self._seen, text, strict=False)) if a != b), None)
        same = min(len(self._seen), len(text)) if same is None else same
        if same < len(self._seen):
            self._matcher.rollback(len(self._seen) - same)
            del self._seen[same:]
        for token in text[same:]:
            if not self._matcher.consume_token(token):
                raise ValueError(f"token {token} is outside the grammar")
            self._seen.append(token)


class _Vocabulary:
    """The tokenizer as llguidance wants it: bytes by id, and which ids are never text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids)
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode(errors="replace"))


def _close_id(tokenizer: Tokenizer) -> int | None:
    try:
        return tokenizer.think_close_id
    except CheckpointError:
        return None


def json_grammar(schema: Any, param: str, *, in_thought: bool) -> str:
    """An answer that is JSON of this schema; after a thought, also after the newline of the layout."""
    check_schema(schema, param)
    newline = "NEWLINE? " if in_thought else ""
    return _from_lark(f"start: {newline}body\nNEWLINE: /\\n/\nbody: %json {on_one_line(schema)}\n", param)


def pattern_grammar(pattern: str, param: str, *, in_thought: bool) -> str:
    """An answer that this regular expression describes from end to end: `^` before and `$` after it say nothing."""
    newline = "NEWLINE? " if in_thought else ""
    return _from_lark(f"start: {newline}BODY\nNEWLINE: /\\n/\nBODY: /{between_slashes(pattern)}/\n", param)


def between_slashes(pattern: str) -> str:
    """A regular expression as the grammar's language writes it: on one line, without a slash of its own."""
    pattern = pattern.removeprefix("^")
    backslashes = len(pattern) - 1 - len(pattern[:-1].rstrip("\\"))
    if pattern.endswith("$") and backslashes % 2 == 0:
        pattern = pattern[:-1]
    spelt = {"/": "\\x2F", "\n": "\\n", "\r": "\\r"}
    return re.sub(r"\\.|[/\n\r]", lambda found: spelt.get(found[0][-1], found[0]), pattern, flags=re.DOTALL) or "(?:)"


def calls_grammar(tools: Sequence[dict[str, Any]], *, must: bool, parallel: bool) -> str:
    """An answer in our layout of tool calls: text and then calls, or, where it `must` call, calls alone.

    Arguments follow the function's schema whether or not it says `strict`. Plain text cannot spell a mark.
    """
    calls = []
    lines = []
    for i, tool in enumerate(tools):
        function = tool["function"]
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        check_schema(schema, f"tools[{i}].function.parameters")
        lines.append(f"args{i}: %json {on_one_line(schema)}")
        calls.append(f"{quoted(function['name'] + CALL_SEP)} args{i}")
    each = f"{quoted(CALL_OPEN)} ({' | '.join(calls)}) {quoted(CALL_CLOSE)}"
    many = "call+" if parallel else "call"
    start = "calls" if must else "TEXT calls | TEXT"
    head = [
        f"start: NEWLINE? {start}" if must else f"start: {start}",
        "NEWLINE: /\\n/",
        "TEXT: /([^<]|<[^｜])*/",
        f"calls: {quoted(CALLS_OPEN)} {many} {quoted(CALLS_CLOSE)}",
        f"call: {each}",
    ]
    return _from_lark("\n".join([*head, *lines]) + "\n", "tools")


def _from_lark(text: str, param: str) -> str:
    """The grammar as a matcher takes it; a 400 that names `param` where nothing can follow one."""
    if llguidance is None:
        raise invalid(f"'{param}' cannot be followed: {WITHOUT}.", param, "not_installed")
    source: str = llguidance.LLMatcher.grammar_from_lark(text)
    return source


def check_schema(schema: Any, param: str) -> None:
    """Refuse what is no schema, what is too large, and references to elsewhere."""
    if not isinstance(schema, dict):
        raise invalid(f"'{param}' must be a JSON schema: an object.", param)
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise invalid(f"'{param}' is nested deeper than {MAX_DEPTH} levels.", param)
        if isinstance(value, dict):
            reference = value.get("$ref")
            if isinstance(reference, str) and not reference.startswith("#"):
                raise invalid(f"'{param}' refers to another document; only '#/...' is followed.", param)
            waiting += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]
    if len(compact(schema)) > MAX_CHARS:
        raise invalid(f"'{param}' is longer than {MAX_CHARS:,} characters.", param)


def on_one_line(schema: dict[str, Any]) -> str:
    """The schema with the compiler's own setting for white space: one space or none, never as much as one likes."""
    return compact(schema | {"x-guidance": {"whitespace_flexible": False}})


def compact(schema: Any) -> str:
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def quoted(text: str) -> str:
    """A string of the grammar's language."""
    return json.dumps(text, ensure_ascii=False)
