"""Byte-level BPE, learnt and applied by the `tokenizers` library.

Pre-tokenizer: Qwen2's expression, every digit by itself, which `transformers`, vLLM and llama.cpp (pre-type "qwen2")
know. One difference: Qwen2 normalises text to NFC first and we do not, so that every text comes back byte for byte
(llama.cpp does not normalise either).

Some places are borders of this expression whatever stands on either side: between a visible character and white space
that ends no line, after the last line end of a run of white space, after a digit, and between a Latin letter and an
ASCII character that is none. `units` cuts there. The same few units come again and again in a text, so each is encoded
once and looked up afterwards: much faster than encoding the text itself, and exact.
"""

import heapq
import json
import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sobre.errors import DataError
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.special import SPECIALS

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PIECE_CHARS = 16_384
"""About the length of the pieces that a sample is made of."""
_END = r"\r\n"
_BLANK = r"\t\x0b\x0c \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # with _END, \s of the expression
_LETTER = r"A-Za-z\xc0-\xd6\xd8-\xf6\xf8-\u024f"
_UNIT = re.compile(
    f"[{_BLANK}]*+"
    f"(?:[^{_BLANK}{_END}{_LETTER}0-9]*+(?:[0-9]|[{_LETTER}]++(?=[\\x00-\\x7f{_BLANK}]|\\Z))"
    f"|[^{_BLANK}{_END}]*+(?:[{_BLANK}{_END}]*[{_END}])?)"
)
_LINE_START = re.compile(r"\n(?=\S)")


def units(text: str) -> list[str]:
    """Cut `text` at borders of the pre-tokenizer: mostly one word each. The last one is empty."""
    return _UNIT.findall(text)


def pieces_of(text: str) -> Iterator[str]:
    """Cut `text` at line starts into pieces of at least PIECE_CHARS characters (the last may be shorter)."""
    start = 0
    while len(text) - start > PIECE_CHARS and (border := _LINE_START.search(text, start + PIECE_CHARS - 1)):
        yield text[start : border.end()]
        start = border.end()
    yield text[start:]


def sample(texts: Iterable[str], n_bytes: int) -> list[str]:
    """Choose pieces of about `n_bytes` in all (0 = everything), spread over the texts, whatever their order.

    The pieces with the smallest content hashes win, so the choice is fixed by the content and one pass is enough.
    """
    if n_bytes == 0:
        return [piece for text in texts for piece in pieces_of(text)]
    kept: list[tuple[int, str]] = []
    total, ceiling = 0, 2**64
    for text in texts:
        for piece in pieces_of(text):
            data = encode_utf8(piece)
            rank = int.from_bytes(blake2b(data, digest_size=8).digest())
            if rank > ceiling:
                continue  # a piece before it did not fit: the choice must not depend on which came first
            heapq.heappush(kept, (-rank, piece))
            total += len(data)
            while total > n_bytes and len(kept) > 1:
                rank, piece = heapq.heappop(kept)
                total, ceiling = total - len(encode_utf8(piece)), -rank
    return [piece for _, piece in sorted(kept, reverse=True)]


def encode_utf8(text: str) -> bytes:
    """UTF-8 bytes of `text`, or an error that says where it has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"character {error.start} of the text is the lone surrogate U+{ord(text[error.start]):04X},"
            " which no UTF-8 text can hold"
        ) from error


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Split at Qwen2's expression, then bytes to characters."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def has_our_borders(description: dict[str, Any]) -> bool:
    """Whether `units` is exact for the tokenizer of this tokenizer.json: no normaliser, and our pre-tokenizer."""
    probe = Tokenizer(models.BPE())
    probe.pre_tokenizer = pre_tokenizer()
    return (
        description["normalizer"] is None
        and description["pre_tokenizer"] == json.loads(probe.to_str())["pre_tokenizer"]
    )


def train(texts: Iterable[str], cfg: TokenizerConfig) -> Tokenizer:
    """Learn a byte-level BPE from a sample of `texts`; special tokens come first, then the bytes, then the merges."""
    pieces = sample(texts, cfg.sample_bytes)
    if not any(pieces):
        raise DataError("there is no text to train the tokenizer on")
    backend = Tokenizer(models.BPE(fuse_unk=False, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=cfg.vocab_size,
        min_frequency=cfg.min_frequency,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(pieces, trainer)
    return backend


def byte_of_character() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's table).

    Printable Latin-1 stands for itself; the other bytes, in order, are U+0100, U+0101, ...
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
