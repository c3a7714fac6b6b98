"""What the held-out text costs without a neural network: xz, an n-gram of bytes, an n-gram of the model's own tokens.

The n-grams (eval/kneser_ney.py) are trained on the very tokens that the model was trained on; their bytes are what the
tokens stand for. Ends of documents are paid for, as the model pays; only xz, which knows none, gets them free.
"""

import lzma
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sobre.data.corpus import Corpus
from sobre.eval.bits import Text
from sobre.eval.kneser_ney import KneserNey, order_that_fits
from sobre.tokenizer.tokenizer import Tokenizer


def baselines(corpus: Corpus, tokenizer: Tokenizer, held_out: Sequence[Text], order: int) -> dict[str, float]:
    """Bits per byte of all of `held_out` by each; `order` is the longest n-gram, shorter if the ids do not fit."""
    texts = [document.text for document in held_out]
    n_bytes = sum(len(text.encode()) for text in texts)
    spelt = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    of_bytes = KneserNey.train((_spell(ids, spelt) for ids in _documents(corpus)), 256, order_that_fits(256, order))
    by_bytes = of_bytes.bits(np.frombuffer(text.encode(), np.uint8) for text in texts) / n_bytes
    n_ids = tokenizer.vocab_size
    of_tokens = KneserNey.train(_documents(corpus), n_ids, order_that_fits(n_ids, order))
    by_tokens = of_tokens.bits(tokenizer.encode_batch(texts)) / n_bytes
    return {
        "xz -9": xz_bits_per_byte(texts),
        f"{of_bytes.order}-gram of bytes": by_bytes,
        f"{of_tokens.order}-gram of this model's tokens": by_tokens,
    }


def xz_bits_per_byte(texts: Iterable[str]) -> float:
    """`xz -9` of the texts, one after the other; document ends cost it nothing."""
    data = "".join(texts).encode()
    return 8 * len(lzma.compress(data, preset=9)) / len(data)


def _documents(corpus: Corpus) -> Iterator[NDArray[np.int64]]:
    """Token ids of each training document, its end left out: the n-gram adds its own."""
    start = 0
    for end in corpus.shards.ends.tolist():
        yield corpus.shards.read(start, end - 1)
        start = end


def _spell(ids: NDArray[np.int64], spelt: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join([spelt[i] for i in ids.tolist()]), np.uint8)
