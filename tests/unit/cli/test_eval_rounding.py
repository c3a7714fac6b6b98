"""`sobre eval --weights --cache --text`: each form of a model scored beside the model as it is."""

import json

import pytest

from sobre.app import eval as evaluation
from sobre.engine import weights
from sobre.errors import ConfigError
from sobre.models.checkpoint import save_model
from sobre.models.config import DenseConfig, GQAConfig, ModelConfig
from sobre.models.decoder import Decoder
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path):
    tokenizer = Tokenizer.train(["un deux trois quatre"], TokenizerConfig(vocab_size=280))
    attention, ffn = GQAConfig(n_heads=2, n_kv_heads=1, head_dim=16), DenseConfig(d_ff=64)
    model = Decoder(
        ModelConfig(
            vocab_size=tokenizer.vocab_size,
            max_len=128,
            d_model=32,
            n_layers=1,
            attention=attention,
            ffn=ffn,
            init_std=0.3,
        )
    )
    model.init_weights(0)
    save_model(model, tmp_path / "m")
    tokenizer.save(tmp_path / "m")
    return tmp_path / "m"


def test_weights_are_rounded_once_and_every_form_is_scored(folder, tmp_path, monkeypatch, capsys):
    made, own = [], weights.quantised

    def counted(*args):
        made.append(own(*args))
        return made[-1]

    monkeypatch.setattr(weights, "quantised", counted)
    monkeypatch.setattr("sobre.models.quantised.quantised", counted)
    (tmp_path / "t.txt").write_text("un deux trois, quatre deux un; trois fois deux")
    flags = ["--tasks", "sorting", "--n", "1", "--max-tokens", "4", "--text", str(tmp_path / "t.txt")]
    out = tmp_path / "o.json"
    assert evaluation.main([str(folder), *flags, "--weights", "int8", "--cache", "int8", "--out", str(out)]) == 0
    scores = {kind: score["value"] for kind, score in json.loads(out.read_text())["bits_per_byte"].items()}
    assert len(made) == 1
    assert list(scores) == ["model", "int8", "int8-cache", "int8+int8-cache"]
    assert len(set(scores.values())) == 4
    assert max(scores.values()) - min(scores.values()) < 0.05
    assert f"{scores['int8+int8-cache']:.4f} with int8 weights and cache" in capsys.readouterr().out


def test_a_service_has_roundings_of_its_own():
    with pytest.raises(ConfigError, match="--weights, --cache and --text are for a model of this process"):
        evaluation.EvalOptions(endpoint="http://a/v1", model="m", cache="int8")
