"""sobre convert: the same weights in a new folder, with all that belongs to the model."""

import io
import json
from pathlib import Path

import pytest
import torch

from sobre.cli import main
from sobre.models.checkpoint import load_model, save_model
from sobre.models.config import DenseConfig, GQAConfig, ModelConfig, RopeConfig
from sobre.models.decoder import Decoder
from sobre.runtime.console import Console


@pytest.fixture
def source(tmp_path: Path) -> Path:
    attention = GQAConfig(n_heads=2, n_kv_heads=1, head_dim=8, qkv_bias=True)
    cfg = ModelConfig(
        vocab_size=32,
        max_len=16,
        d_model=16,
        n_layers=2,
        attention=attention,
        ffn=DenseConfig(d_ff=24),
        rope=RopeConfig(interleaved=False),
    )
    model = Decoder(cfg)
    model.init_weights(0)
    model.family = "seed_oss"
    save_model(model, tmp_path / "source", extra={"eos_token_id": 3})
    (tmp_path / "source" / "tokenizer.json").write_text('{"of": "the source"}')
    return tmp_path / "source"


def test_the_weights_are_bit_for_bit_the_same_and_the_rest_comes_along(source: Path, tmp_path: Path, capsys):
    assert main(["convert", str(source), str(tmp_path / "target"), "--to", "hf"]) == 0
    one, other = load_model(source), load_model(tmp_path / "target")
    assert other.family == "seed_oss"
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert json.loads((tmp_path / "target" / "config.json").read_text())["eos_token_id"] == 3
    assert (tmp_path / "target" / "tokenizer.json").read_text() == '{"of": "the source"}'
    assert "parameters as SeedOssForCausalLM" in capsys.readouterr().err


def test_dtype_is_that_asked_for_and_a_full_folder_is_left_alone(source: Path, tmp_path: Path, capsys):
    assert main(["convert", str(source), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert load_model(tmp_path / "half").embed.weight.dtype == torch.bfloat16
    assert main(["convert", str(source), str(tmp_path / "half")]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


def test_a_small_model_is_counted_once_and_in_whole_megabytes():
    stream = io.StringIO()
    with Console(stream=stream) as console:
        console.stage("write, MB", total=1)
        for done in (1000, 300_000, 1_200_000):
            console.update_bytes(done, 1_200_000)
    assert stream.getvalue().splitlines() == ["write, MB  0/2", "write, MB  2/2"]
