"""The n-gram baseline: probabilities, hand-computed counts, and the figures known for real text."""

import gzip
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from sobre.errors import ConfigError
from sobre.eval import kneser_ney
from sobre.eval.baselines import xz_bits_per_byte
from sobre.eval.kneser_ney import KneserNey, order_that_fits

PRETRAIN = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "pretrain"


def make_documents(n: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    weights = [1 / (i + 1) for i in range(vocab_size)]
    return [rng.choices(range(vocab_size), weights, k=rng.randrange(40)) for _ in range(n)]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one_after_contexts_seen_and_unseen(order):
    model = KneserNey.train(make_documents(60, 9), 10, order)
    for context in ([], [0], [0, 1, 0, 2], [9, 9, 9, 9], [3, 9], [0, 0, 0, 0, 0, 0]):
        assert sum(model.probability(context, token) for token in range(11)) == pytest.approx(1.0)


def test_bigram_equals_the_formula_computed_by_hand():
    # Documents "a b" and "a a b"; ids a=0, b=1, boundary=2; counts of counts are missing, so D1=0.5, D2=1.
    # Bigrams: (2,a) 2, (a,b) 2, (b,2) 2, (a,a) 1. Left neighbours: a 2 (boundary, a), b 1, end 1.
    model = KneserNey.train([[0, 1], [0, 0, 1]], 2, order=2)
    left_over = (1.0 + 0.5 + 0.5) / 4
    unigram = {0: (2 - 1.0) / 4 + left_over / 3, 1: (1 - 0.5) / 4 + left_over / 3, 2: (1 - 0.5) / 4 + left_over / 3}
    after_a = (1.0 + 0.5) / 3
    assert model.probability([0], 1) == pytest.approx((2 - 1.0) / 3 + after_a * unigram[1])
    assert model.probability([0], 0) == pytest.approx((1 - 0.5) / 3 + after_a * unigram[0])
    assert model.probability([0], 2) == pytest.approx(after_a * unigram[2])
    assert model.probability([], 0) == pytest.approx((2 - 1.0) / 2 + 1.0 / 2 * unigram[0])


def test_discounts_follow_chen_and_goodman():
    counts = np.array([1] * 8 + [2] * 4 + [3] * 2 + [4] * 1)
    y = 8 / (8 + 2 * 4)
    expected = [0, 1 - 2 * y * 4 / 8, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2]
    assert kneser_ney._discounts(counts).tolist() == pytest.approx(expected)


def test_nothing_is_impossible_even_where_the_counts_give_no_discount_for_it():
    counts = np.array([1, 2, 3, 3, 3, 3, 4])
    assert kneser_ney._discounts(counts).tolist() == [0.0, 0.5, 1.0, 1.5]
    model = KneserNey.train([[i % 5, 0, i % 3, 0] for i in range(40)], 7, order=3)
    assert min(model.probability([a, b], c) for a in range(7) for b in range(7) for c in range(8)) > 0


def test_bits_are_the_sum_over_every_token_and_every_end():
    model = KneserNey.train(make_documents(40, 6), 6, order=3)
    text = [0, 3, 1, 0, 5]
    by_hand = -sum(math.log2(model.probability(text[:i], t)) for i, t in enumerate([*text, 6]))
    assert model.bits([text]) == pytest.approx(by_hand)
    assert model.bits([text, [], text]) == pytest.approx(2 * by_hand - math.log2(model.probability([], 6)))


def test_counting_in_chunks_changes_nothing(monkeypatch):
    documents = make_documents(50, 8)
    whole = KneserNey.train(documents, 8).bits(make_documents(5, 8, seed=1))
    monkeypatch.setattr(kneser_ney, "CHUNK", 64)
    assert KneserNey.train(documents, 8).bits(make_documents(5, 8, seed=1)) == pytest.approx(whole, rel=1e-12)


def test_order_is_bounded_by_what_fits_64_bits_and_too_long_a_one_is_refused():
    assert [order_that_fits(v) for v in (256, 7130, 7131, 65534)] == [5, 5, 4, 4]
    with pytest.raises(ConfigError, match="longest that fit: 4"):
        KneserNey.train([[0]], 10_000, order=5)


def test_an_id_outside_the_vocabulary_and_an_empty_text_are_refused():
    with pytest.raises(ConfigError, match="id 7"):
        KneserNey.train([[7]], 7)
    with pytest.raises(ConfigError, match="no text"):
        KneserNey.train([], 7)


@pytest.mark.slow
@pytest.mark.skipif(not PRETRAIN.exists(), reason="the shared text is not there")
def test_on_real_english_the_byte_fivegram_and_xz_reach_their_known_figures():
    with gzip.open(PRETRAIN / "train_en.jsonl.gz", "rt", encoding="utf-8") as file:
        train = [json.loads(line)["text"] for line in file]
    with gzip.open(PRETRAIN / "val.jsonl.gz", "rt", encoding="utf-8") as file:
        held_out = [row["text"] for row in map(json.loads, file) if row["lang"] == "en"]
    model = KneserNey.train((np.frombuffer(text.encode(), np.uint8) for text in train), 256)
    n_bytes = sum(len(text.encode()) for text in held_out)
    bits = model.bits(np.frombuffer(text.encode(), np.uint8) for text in held_out)
    assert bits / n_bytes == pytest.approx(2.10, abs=0.02)
    assert xz_bits_per_byte(held_out) == pytest.approx(2.27, abs=0.01)
