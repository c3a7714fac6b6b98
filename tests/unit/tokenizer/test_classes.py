"""Classes of tokens: spelling that means the same is one class, everything else is its own."""

import pytest

from sobre.tokenizer.classes import token_classes
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

TEXT = ["The cat saw the dog. THE END, the end. Été été ete, du thé.\n\n"] * 40


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXT, TokenizerConfig(vocab_size=320))


def test_case_and_surrounding_spaces_make_no_difference_and_accents_do(tokenizer):
    classes = token_classes(tokenizer, tokenizer.vocab_size)
    ids = {tokenizer.token_bytes(i).decode(errors="ignore"): i for i in range(tokenizer.vocab_size)}
    assert len({classes[ids[text]] for text in ("The", " the")}) == 1
    assert classes[ids["e"]] == classes[ids["E"]]
    assert classes[ids["é"]] != classes[ids["e"]]
    assert classes[ids[" "]] != classes[ids["\n"]]
    assert len({classes[i] for i in tokenizer.special_ids}) == len(tokenizer.special_ids)


def test_classes_count_from_one_without_gaps_and_cover_ids_that_no_token_has(tokenizer):
    classes = token_classes(tokenizer, tokenizer.vocab_size + 5)
    assert len(classes) == tokenizer.vocab_size + 5
    assert sorted(set(classes)) == list(range(1, max(classes) + 1))
    assert max(classes) < len(classes) - 20  # some are shared
    assert len(set(classes[-5:])) == 5
