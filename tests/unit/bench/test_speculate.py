"""The benchmark of guesses: what is counted, what is the same with and without, and text that is too short."""

import json
from dataclasses import replace

import jsonschema
import pytest

from sobre.bench import speculate
from sobre.bench.config import SpeculateBench
from sobre.bench.table import table
from sobre.errors import ConfigError, DataError
from sobre.models.checkpoint import save_model
from sobre.models.decoder import Decoder
from sobre.schemas import schema
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def made(tmp_path, nano_config):
    """A folder of a model with an MTP module or without, and text of two sources."""
    tokenizer = Tokenizer.train([f"Compute {i}*(2+{i})" for i in range(24)], TokenizerConfig(vocab_size=288))
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"text": f"Compute {i}*(2+{i}) and more", "source": f"s{i < 9}"}) + "\n" for i in range(12))
    )

    def folder(n_mtp: int) -> SpeculateBench:
        model = Decoder(replace(nano_config, vocab_size=tokenizer.vocab_size, max_len=64, n_mtp=n_mtp))
        model.init_weights(0)
        save_model(model, tmp_path / f"m{n_mtp}")
        tokenizer.save(tmp_path / f"m{n_mtp}", max_len=64)
        sizes = {"batches": (1, 3), "prompt": 8, "new": 12, "rounds": 1, "dtype": "float32"}
        return SpeculateBench(model=str(tmp_path / f"m{n_mtp}"), text=(str(tmp_path / "t.jsonl"),), **sizes)

    return folder


@pytest.mark.parametrize("n_mtp", [0, 1])
def test_guesses_are_counted_and_change_no_answer(made, n_mtp):
    cfg = made(n_mtp)
    document = speculate.bench(cfg, lambda line: None).document()
    jsonschema.validate(document, schema("bench"))
    names = [f"guesses, {n} at once, temperature {t:g}" for n in (1, 3) for t in (0.0, 0.6)]
    assert [found["of"] for found in document["ratios"]] == list(document["guesses"]) == names
    for found in document["guesses"].values():
        assert found["same_answers"] == 1.0
        assert 0 <= found["right"] <= 1
        assert found["tokens_per_step"] >= found["plain_tokens_per_step"] > 0
    # the first token comes of the prompt's own pass
    assert document["guesses"][names[0]]["plain_tokens_per_step"] == pytest.approx(12 / 12)
    assert ("its MTP module" if n_mtp else "what stood in the context") in document["notes"][0]
    assert f"{document['guesses'][names[0]]['right']:.1%} right" in table(document)


def test_a_text_that_repeats_itself_is_guessed_from_the_context(made, monkeypatch):
    """A model that says one token for ever: after a match all guesses are right, four in a step beside its own."""
    cfg = made(0)
    monkeypatch.setattr(Decoder, "logits", lambda self, hidden_ND: one_hot(hidden_ND, self.cfg.vocab_size))
    found = speculate.bench(cfg, lambda line: None).body["guesses"]["guesses, 1 at once, temperature 0"]
    assert found["right"] == 1.0
    assert found["tokens_per_step"] == 12 / 6  # one by one until three of them stand there, then five at once


def one_hot(hidden_ND, vocab_size):
    logits_NV = hidden_ND.new_zeros(len(hidden_ND), vocab_size)
    logits_NV[:, 7] = 9.0
    return logits_NV


def test_prompts_come_of_all_sources_in_turn_and_must_be_long_enough(made):
    cfg = made(0)
    tokenizer = Tokenizer.load(cfg.model)
    prompts = speculate._prompts(replace(cfg, batches=(4,)), tokenizer)
    assert [tokenizer.decode(list(ids)) for ids in prompts] == [
        tokenizer.decode(tokenizer.encode(f"Compute {i}*(2+{i}) and more")[:8]) for i in (0, 9, 1, 10)
    ]
    with pytest.raises(DataError, match="has 0 documents of 60 tokens, and 3 are needed"):
        speculate.bench(replace(cfg, prompt=60), lambda line: None)
    with pytest.raises(ConfigError, match="new=0"):
        replace(cfg, new=0)
