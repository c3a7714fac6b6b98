"""Which tokens are the same to an n-gram: classes of ids that differ in case, form or surrounding spaces alone.

DeepSeek's Engram (arXiv 2601.07372, 2.2) compresses its vocabulary so, that " The", "the" and "THE" name one row of the
memory and are learned together. Text is normalised by NFKC and casefolding, and stripped; accents stay, for they carry
meaning in French. Special tokens, white space and pieces of a UTF-8 character are classes of their own.
"""

import unicodedata

from sobre.tokenizer.tokenizer import Tokenizer


def token_classes(tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """The class of every id below `vocab_size`, numbered from 1 on as they appear."""
    numbers: dict[object, int] = {}
    return [numbers.setdefault(_same(tokenizer, token_id), len(numbers) + 1) for token_id in range(vocab_size)]


def _same(tokenizer: Tokenizer, token_id: int) -> object:
    """Equal for ids of one class."""
    if token_id in tokenizer.special_ids or token_id >= tokenizer.vocab_size:
        return token_id
    spelt = tokenizer.token_bytes(token_id)
    try:
        return unicodedata.normalize("NFKC", spelt.decode()).casefold().strip() or spelt
    except UnicodeDecodeError:
        return spelt
