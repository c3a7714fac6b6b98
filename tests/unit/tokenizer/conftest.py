"""A small tokenizer, trained once."""

import random

import pytest

from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

WORDS = (
    "the sum of and is take then café niño naïve 计算 答案 所以 结果 Größe <answer> </answer> + - * / = ( ) .\n ,"
    " 12 345 divided multiplied answer question numbers equals"
).split(" ")


def sentences(n: int, seed: int = 0) -> list[str]:
    """Seeded nonsense in several scripts."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=30)) for _ in range(n)]


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return sentences(200)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(sentences(200), TokenizerConfig(vocab_size=512))
