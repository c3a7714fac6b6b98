"""What text costs without a network: the same documents, the same bytes, document ends paid for."""

import random

import pytest

from sobre.data.config import DataConfig
from sobre.data.corpus import prepare
from sobre.data.sources import Document
from sobre.eval.baselines import baselines, xz_bits_per_byte
from sobre.eval.kneser_ney import KneserNey
from sobre.tokenizer.config import SMALLEST, TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer


def test_xz_is_charged_per_utf8_byte():
    assert xz_bits_per_byte(["é" * 5000]) < 0.2
    noise = random.Random(0).randbytes(4000).decode("latin-1")
    assert 5.0 < xz_bits_per_byte([noise]) < 8.5


def test_baselines_are_trained_on_the_texts_that_the_model_reads(tmp_path):
    texts = [f"le chat {i} dort, 猫在睡觉 {i * i}. " * 4 for i in range(30)]
    tokenizer = Tokenizer.train(texts, TokenizerConfig(vocab_size=SMALLEST + 40))
    documents = (Document(text, "cats", where=str(i)) for i, text in enumerate(texts))
    corpus = prepare(documents, tokenizer, tmp_path / "corpus", DataConfig(holdout_fraction=0.0))
    held_out = [Document("le chat tombe. ", "x"), Document("é 猫", "y")]
    found = baselines(corpus, tokenizer, held_out, 5)
    assert list(found) == ["xz -9", "5-gram of bytes", "5-gram of this model's tokens"]
    n_bytes = sum(len(document.text.encode()) for document in held_out)
    of_bytes = KneserNey.train([list(text.encode()) for text in texts], 256)
    of_tokens = KneserNey.train([tokenizer.encode(text) for text in texts], tokenizer.vocab_size)
    by_bytes = of_bytes.bits([list(document.text.encode()) for document in held_out])
    by_tokens = of_tokens.bits([tokenizer.encode(document.text) for document in held_out])
    assert found["5-gram of bytes"] == pytest.approx(by_bytes / n_bytes)
    assert found["5-gram of this model's tokens"] == pytest.approx(by_tokens / n_bytes)
