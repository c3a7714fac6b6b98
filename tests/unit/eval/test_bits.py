"""Bits per byte: every token once, whatever the windows; bytes counted, not tokens."""

import math
from dataclasses import dataclass

import pytest
import torch

from sobre.eval.bits import bits_per_byte, tokens_read, windows
from sobre.models.config import DenseConfig, GQAConfig, ModelConfig
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput


class ByteTokenizer:
    eos_id = 256

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]


@dataclass(frozen=True)
class Document:
    text: str
    source: str


@pytest.fixture(scope="module")
def model():
    cfg = ModelConfig(
        vocab_size=257,
        max_len=256,
        d_model=32,
        n_layers=2,
        attention=GQAConfig(n_heads=2, n_kv_heads=1, head_dim=16),
        ffn=DenseConfig(d_ff=64),
        init_std=0.2,
    )
    decoder = Decoder(cfg)
    decoder.init_weights(0)
    return decoder


@pytest.mark.parametrize("length", [1, 7, 8, 9, 40, 41])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_windows_score_every_token_once_from_the_token_before(length, overlap):
    ids = list(range(100, 100 + length))
    cut = list(windows(ids, 0, start_id=99, window=8, overlap=overlap))
    assert [t for w in cut for t in w.targets[len(w.targets) - w.n_scored :]] == ids
    assert all(t == i + 1 for w in cut for i, t in zip(w.ids, w.targets, strict=True))
    assert all(len(w.ids) <= 8 for w in cut)
    assert all(len(w.ids) - w.n_scored == int(8 * overlap) for w in cut[1:])


def test_bits_of_a_short_document_are_those_of_one_forward_pass(model):
    ids = [*b"Un chat dort.", 256]
    hidden = model(StepInput(torch.tensor([256, *ids[:-1]]), lengths=(len(ids),))).hidden_ND
    logp = model.logits(hidden).log_softmax(-1)[range(len(ids)), ids]
    scores = bits_per_byte(model, ByteTokenizer(), [Document("Un chat dort.", "cats")], window=64)
    assert scores["cats"].bits == pytest.approx(-logp.sum().item() / math.log(2), rel=1e-5)
    assert (scores["cats"].n_bytes, scores["cats"].n_tokens) == (13, 14)


def test_bytes_are_utf8_and_sources_sum_to_all(model):
    documents = [Document("猫在睡觉", "zh"), Document("café", "fr"), Document("", "fr")]
    scores = bits_per_byte(model, ByteTokenizer(), documents, window=16)
    assert (scores["zh"].n_bytes, scores["fr"].n_bytes, scores["fr"].n_documents) == (12, 5, 2)
    assert scores["all"].bits == pytest.approx(scores["zh"].bits + scores["fr"].bits)
    assert scores["all"].to_dict()["value"] == scores["all"].per_byte == scores["all"].bits / 17


def test_a_source_called_all_is_counted_once_in_the_sum(model):
    scores = bits_per_byte(model, ByteTokenizer(), [Document("abc", "all"), Document("de", "x")], window=16)
    assert {name: score.n_bytes for name, score in scores.items()} == {"all": 5, "x": 2}


def test_batching_documents_together_changes_nothing(model):
    texts = ["a", "bb" * 9, "une phrase plus longue que la fenêtre, " * 3, "abc"]
    documents = [Document(text, str(i)) for i, text in enumerate(texts)]
    together = bits_per_byte(model, ByteTokenizer(), documents, window=32)
    for document in documents:
        alone = bits_per_byte(model, ByteTokenizer(), [document], window=32)
        assert together[document.source].bits == pytest.approx(alone["all"].bits, rel=1e-5)


def test_a_window_as_long_as_the_document_and_heavy_overlap_agree_nearly_on_the_tail(model):
    document = Document("abcdefgh" * 12, "x")
    exact = bits_per_byte(model, ByteTokenizer(), [document], window=128)["x"].bits
    cut = bits_per_byte(model, ByteTokenizer(), [document], window=64, overlap=0.9)["x"].bits
    assert cut == pytest.approx(exact, rel=0.05)
    assert cut != exact


def test_tokens_read_again_as_context_are_counted_as_read_and_not_as_scored(model):
    score = bits_per_byte(model, ByteTokenizer(), [Document("a" * 39, "x")], window=16, overlap=0.25)["x"]
    assert (score.n_tokens, score.n_read) == (40, 3 * 16)


def test_what_will_be_read_is_known_before(model):
    documents = [Document("a" * n, "x") for n in (1, 16, 39, 200)]
    for overlap in (0.0, 0.25, 0.9):
        score = bits_per_byte(model, ByteTokenizer(), documents, window=16, overlap=overlap)["all"]
        assert tokens_read(ByteTokenizer(), documents, window=16, overlap=overlap) == score.n_read


def test_only_the_first_documents_of_each_source_are_scored_when_asked(model):
    documents = [Document("a", "x"), Document("b", "y"), Document("c", "x"), Document("d", "x")]
    scores = bits_per_byte(model, ByteTokenizer(), documents, window=8, per_source=2)
    assert (scores["x"].n_documents, scores["y"].n_documents, scores["all"].n_documents) == (2, 1, 3)
