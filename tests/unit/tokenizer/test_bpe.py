"""Training, borders, and ids that come back as the same text."""

import random

import pytest

from sobre.errors import ConfigError, DataError
from sobre.tokenizer import bpe
from sobre.tokenizer.config import SMALLEST, TokenizerConfig
from sobre.tokenizer.special import SPECIALS
from sobre.tokenizer.tokenizer import Tokenizer

ODD = [
    *"ab .,'-<>|`\n\r\t\x0b\x1c\x1f\x85\xa0\u2028\u3000é中²٣\U0001f600",
    "'s",
    "  ",
    "\n\n",
    "\r\n",
    "e\u0301",
    "3.14",
    "ſ",
]


def odd_texts(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(ODD, k=rng.randint(1, 16))) for _ in range(n)]


def test_special_tokens_come_first_then_bytes_then_merges(tokenizer):
    assert [tokenizer.token_bytes(i).decode() for i in range(len(SPECIALS))] == list(SPECIALS)
    assert sorted(tokenizer.token_bytes(i) for i in range(len(SPECIALS), SMALLEST)) == [bytes([b]) for b in range(256)]
    assert all(len(tokenizer.token_bytes(i)) > 1 for i in range(SMALLEST, tokenizer.vocab_size))
    assert SMALLEST < tokenizer.vocab_size <= 512


def test_the_smallest_vocabulary_is_the_bytes(tokenizer):
    smallest = Tokenizer.train(["ab ab ab"], TokenizerConfig(vocab_size=SMALLEST))
    assert smallest.vocab_size == SMALLEST
    assert [smallest.token_bytes(i) for i in smallest.encode("é!")] == [b"\xc3", b"\xa9", b"!"]


def test_every_digit_is_a_token_of_its_own(tokenizer):
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode("12345")] == [b"1", b"2", b"3", b"4", b"5"]


def test_any_text_comes_back_byte_for_byte(tokenizer):
    for text in odd_texts(3000, seed=1):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_encoding_by_units_equals_encoding_the_whole_text(tokenizer):
    texts = odd_texts(6000, seed=2)
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert all("".join(bpe.units(text)) == text for text in texts)


def test_units_are_cut_only_where_the_pre_tokenizer_cuts():
    split = bpe.pre_tokenizer().pre_tokenize_str
    for text in odd_texts(6000, seed=3):
        assert [part for unit in bpe.units(text) for part, _ in split(unit)] == [part for part, _ in split(text)]


def test_a_unit_border_after_every_character_that_can_end_a_word(tokenizer):
    texts = [chr(code) + tail for code in range(1, 0x3100) for tail in (".\n b", "'s 1", "a b")]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_units_learnt_in_one_call_serve_the_next(tokenizer):
    assert tokenizer.encode_batch(["the sum", ""]) == tokenizer.encode_batch(["the sum", ""])


def test_training_twice_gives_the_same_tokenizer(tokenizer, corpus, tmp_path):
    again = Tokenizer.train(corpus, TokenizerConfig(vocab_size=512))
    again.save(tmp_path / "a")
    tokenizer.save(tmp_path / "b")
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_the_sample_does_not_depend_on_the_order_of_the_texts():
    texts = [f"document {i}: " + "word " * i for i in range(300)]
    chosen = bpe.sample(texts, 20_000)
    assert chosen == bpe.sample(texts[::-1], 20_000)
    assert 18_000 < sum(len(piece) for piece in chosen) <= 20_000
    assert {text.split(":")[0] for text in chosen} != {f"document {i}" for i in range(len(chosen))}


def test_one_long_text_is_sampled_over_its_whole_length():
    text = "".join(f"line {i} of a long book\n" for i in range(40_000))
    chosen = bpe.sample([text], 400_000)
    assert "".join(bpe.pieces_of(text)) == text
    assert sum(map(len, chosen)) <= 400_000
    places = [int(piece.split(" ", 2)[1]) for piece in chosen]
    assert min(places) < 20_000 < max(places)


def test_a_lone_surrogate_is_an_error_that_says_where(tokenizer):
    with pytest.raises(DataError, match=r"character 2 .*U\+D800"):
        tokenizer.encode("ab\ud800c")
    with pytest.raises(DataError, match=r"U\+DFFF"):
        tokenizer.encode_batch(["fine", "\udfff"])


def test_training_needs_text():
    with pytest.raises(DataError, match="no text"):
        Tokenizer.train([], TokenizerConfig())
    with pytest.raises(ConfigError, match=str(SMALLEST)):
        TokenizerConfig(vocab_size=SMALLEST - 1)


def test_an_id_without_a_token_shows_as_the_replacement_character(tokenizer):
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == "\ufffd"
