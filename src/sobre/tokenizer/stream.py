"""Ids to text as they come, in whole characters.

A character may be spread over several tokens; its bytes wait until the last has come. Pushing every id and then
flushing gives the same text as `Tokenizer.decode`.
"""

import codecs

from sobre.tokenizer.tokenizer import Tokenizer


class Detokenizer:
    """The text of one sequence, token by token."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes; "" while one is still open."""
        return "" if token_id in self._skipped else self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD if a character was never completed. Ready for another sequence after it."""
        return self._decoder.decode(b"", final=True)
