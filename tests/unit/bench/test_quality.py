"""The benchmark of quality: bits and divergences by hand, every form there, a form that computes otherwise refused."""

import json
import math

import jsonschema
import pytest
import torch

from sobre.bench import quality
from sobre.bench.config import QualityBench
from sobre.bench.table import table
from sobre.errors import ConfigError, DataError, RunError
from sobre.eval.bits import bits_per_byte
from sobre.models.checkpoint import load_model, save_model
from sobre.models.config import MLAConfig, ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.schemas import schema
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

OURS = ["float32", "bfloat16", "int8 cache", "int8", "int8, int8 cache", "int4", "int4, int8 cache"]


@pytest.fixture
def trained(tmp_path):
    """A folder with a mixture whose matrices all forms take."""
    tokenizer = Tokenizer.train([f"Compute {i}*(2+{i})" for i in range(24)], TokenizerConfig(vocab_size=288))
    cfg = ModelConfig(
        vocab_size=304,
        max_len=64,
        d_model=32,
        n_layers=2,
        attention=MLAConfig(n_heads=2, q_rank=32, kv_rank=32, nope_dim=16, rope_dim=16, v_dim=16),
        ffn=MoEConfig(n_experts=4, n_active=2, d_expert=32, n_dense_layers=1, d_ff=32),
        init_std=0.2,
    )
    model = Decoder(cfg)
    model.init_weights(0)
    save_model(model, tmp_path / "trained")
    tokenizer.save(tmp_path / "trained", max_len=64)
    return tmp_path / "trained"


@pytest.fixture
def text(tmp_path):
    rows = [{"text": f"Compute {i}*(2+{i})", "lang": "en" if i % 2 else "fr"} for i in range(24)]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def no_llama(monkeypatch):
    monkeypatch.setattr(quality, "LACKS", "llama.cpp is left out: not here")


def settings(trained, text, **given):
    return QualityBench(model=str(trained), text=(str(text),), window=16, **given)


def test_sums_are_the_definitions_of_bits_divergence_and_agreement():
    exact, base, mine = (
        torch.tensor([[p, 1 - p], [q, 1 - q]]).log() for p, q in ((0.5, 0.5), (0.75, 0.25), (0.6, 0.9))
    )
    sums = quality.Sums()
    sums.add(mine, exact, base, torch.tensor([0, 1]))
    found = sums.over(2, 3)
    assert found["bits_per_byte"] == pytest.approx(-(math.log2(0.6) + math.log2(0.1)) / 3)
    by_hand = 0.75 * math.log(0.75 / 0.6) + 0.25 * math.log(0.25 / 0.4)
    by_hand += 0.25 * math.log(0.25 / 0.9) + 0.75 * math.log(0.75 / 0.1)
    assert found["kl_to_bfloat16"] == pytest.approx(by_hand / 2, rel=1e-5)
    by_hand = sum(0.5 * math.log(0.5 / p) for p in (0.6, 0.4, 0.9, 0.1))
    assert found["kl_to_float32"] == pytest.approx(by_hand / 2, rel=1e-5)
    assert found["same_best"] == 0.5


def test_every_form_reads_what_bits_per_byte_reads(trained, text, no_llama):
    document = quality.bench(settings(trained, text), lambda line: None).document()
    jsonschema.validate(document, schema("bench"))
    found = document["contestants"]
    assert list(found) == [f"sobre {name}" for name in OURS]
    assert document["notes"] == ["llama.cpp is left out: not here"]
    documents = [row for row in map(json.loads, text.read_text().splitlines())]
    rows = [quality.Document(row["text"], "", row["lang"]) for row in documents]
    exact = bits_per_byte(load_model(trained, dtype=torch.float32), Tokenizer.load(trained), rows, window=16)["all"]
    assert found["sobre float32"]["bits_per_byte"] == pytest.approx(exact.per_byte, rel=1e-6)
    assert (found["sobre float32"]["tokens"], found["sobre float32"]["bytes"]) == (exact.n_tokens, exact.n_bytes)
    assert found["sobre bfloat16"]["kl_to_bfloat16"] == found["sobre float32"]["kl_to_float32"] == 0
    assert found["sobre bfloat16"]["same_best"] == 1
    to_exact = [found[f"sobre {name}"]["kl_to_float32"] for name in ("bfloat16", "int8", "int4")]
    assert 0 < to_exact[0] < to_exact[2]
    assert to_exact[1] < to_exact[2]
    assert "sobre int4, int8 cache" in table(document)


def test_language_number_and_length_of_documents_choose_what_is_read(trained, text, no_llama):
    all_bytes, some_bytes, few_bytes = (
        quality.bench(settings(trained, text, **given), lambda line: None).body["contestants"]["sobre int8"]["bytes"]
        for given in ({"lang": "fr"}, {"lang": "fr", "documents": 2}, {"documents": 3, "chars": 7})
    )
    assert all_bytes == sum(len(f"Compute {i}*(2+{i})") for i in range(0, 24, 2))
    assert (some_bytes, few_bytes) == (2 * 15, 3 * 7)
    with pytest.raises(DataError, match="holds no row of lang='zh'"):
        quality.bench(settings(trained, text, lang="zh"), lambda line: None)


def test_a_model_that_four_bits_do_not_take_is_named(trained, text, no_llama, monkeypatch):
    def refuse(model, bits):
        raise ConfigError("not these shapes")

    monkeypatch.setattr(quality, "in_bits", refuse)
    result = quality.bench(settings(trained, text, documents=1), lambda line: None)
    assert list(result.body["contestants"]) == ["sobre float32", "sobre bfloat16", "sobre int8 cache"]
    assert "sobre int4 is left out: not these shapes" in result.notes


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_a_file_that_gives_other_probabilities_in_float32_is_no_result(trained, text, monkeypatch, factor):
    exact = load_model(trained, dtype=torch.float32)

    def same(batch):
        return factor * quality.logits_of(exact, batch, None)

    monkeypatch.setattr(quality, "llama_readers", lambda *_: {"llama.cpp f32": same, "llama.cpp f16": same})
    cfg = settings(trained, text, documents=1)
    if factor == 1.0:
        result = quality.bench(cfg, lambda line: None)
        assert list(result.body["contestants"])[-1] == "llama.cpp f16"  # the check is no contestant
        assert result.check[0]["value"] == 0
    else:
        with pytest.raises(RunError, match="llama.cpp f32, cache of 32 bits"):
            quality.bench(cfg, lambda line: None)


def test_it_asks_for_a_model_and_a_text():
    with pytest.raises(ConfigError, match="--model FOLDER --text FILE"):
        QualityBench(model="x")
    with pytest.raises(ConfigError, match="window=1"):
        QualityBench(model="x", text=("y",), window=1)
