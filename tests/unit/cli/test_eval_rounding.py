"""`sobre eval --weights --cache --text`: each form of a model scored beside the model as it is."""

import json

import jsonschema
import pytest

from sobre.app import eval as evaluation
from sobre.app import rounded
from sobre.engine import weights
from sobre.errors import ConfigError, DataError
from sobre.models.checkpoint import save_model
from sobre.models.config import DenseConfig, GQAConfig, ModelConfig
from sobre.models.decoder import Decoder
from sobre.schemas import schema
from sobre.serve.load import Speed
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
    said = capsys.readouterr().out
    assert f"{scores['int8+int8-cache']:.4f} with int8 weights and cache" in said
    assert "  t of" not in said, "one source is the text"


def test_every_source_of_the_text_has_its_own_bits(folder, tmp_path, capsys):
    text = tmp_path / "text"
    text.mkdir()
    (text / "short.txt").write_text("un deux trois")
    rows = [{"text": "quatre deux un", "source": "web"}, {"text": "trois fois deux", "source": "web"}]
    (text / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--tasks", "sorting", "--n", "1", "--max-tokens", "4", "--text", str(text), "--cache", "int8"]
    out = tmp_path / "o.json"
    assert evaluation.main([str(folder), *flags, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    jsonschema.validate(result, schema("evaluation"))
    for whole in result["bits_per_byte"].values():
        assert {name: (one["bytes"], one["documents"]) for name, one in whole["sources"].items()} == {
            "web": (29, 2),
            "short": (13, 1),
        }
        assert whole["bits"] == pytest.approx(sum(one["bits"] for one in whole["sources"].values()))
    web = {kind: whole["sources"]["web"]["value"] for kind, whole in result["bits_per_byte"].items()}
    line = f"  web of 29 bytes, bits per byte: {web['model']:.4f} as it is, {web['int8-cache']:.4f} with an int8 cache"
    assert line in capsys.readouterr().out
    (text / "all.txt").write_text("un")
    with pytest.raises(DataError, match=r"all.txt:1: its source is 'all'"):
        evaluation.main([str(folder), *flags])


def test_accuracy_and_speed_stand_beside_those_of_the_model_as_it_is(folder, tmp_path, monkeypatch, capsys):
    written = iter(range(3, 100))
    factor = {"model": 1.0, "int8": 2.0}

    def measured(engine, n_slots, *_):
        return Speed(*(next(written) * factor[engine.cfg.weights] for _ in range(2)), n_slots)

    monkeypatch.setattr(rounded, "measure_speed", measured)
    flags = ["--tasks", "sorting", "--n", "2", "--max-tokens", "4", "--weights", "int8"]
    out = tmp_path / "o.json"
    assert evaluation.main([str(folder), *flags, "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    jsonschema.validate(document, schema("evaluation"))
    speeds, found = document["decoding"], document["tasks"]["sorting"]
    # in turns: as it is 3 4, 7 8, 11 12; rounded 5 6, 9 10, 13 14, all twice as fast
    assert speeds["model"] == {"alone": 7, "busy": 8, "at_once": 16}
    assert (speeds["int8"]["alone"], speeds["int8"]["alone_over_model"]) == (18, pytest.approx(18 / 7))
    assert found["as_it_is"]["difference"]["value"] == 0
    assert found["as_it_is"]["average_at_k"]["value"] == found["average_at_k"]["value"] == 0
    said = capsys.readouterr().out
    assert "18 with int8 weights, 2.57 times (20 for 16 at once, 2.50 times)" in said
    assert "+0.0% against the model as it is" in said


def test_a_service_has_roundings_of_its_own():
    with pytest.raises(ConfigError, match="--weights, --cache and --text are for a model of this process"):
        evaluation.EvalOptions(endpoint="http://a/v1", model="m", cache="int8")
