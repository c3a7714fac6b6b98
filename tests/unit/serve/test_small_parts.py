"""Folders that are no models, settings that cannot be, examples, prices, and text made safe for a terminal."""

import pytest
import torch

from sobre.app.chat import printable, without_tags
from sobre.app.serve import read_keyring, read_lines
from sobre.config.load import load
from sobre.errors import CheckpointError, ConfigError
from sobre.ledger.prices import prices
from sobre.models.checkpoint import save_model
from sobre.models.config import DenseConfig, GQAConfig, ModelConfig, RopeConfig
from sobre.models.decoder import Decoder
from sobre.serve.config import ChatConfig, ServeConfig
from sobre.serve.examples import example_problems
from sobre.serve.load import _weights as weights
from sobre.serve.load import check_folder, load_folder
from sobre.serve.price import cost_basis, machine_price, usd_per_million
from sobre.tasks.registry import TASKS
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer


def test_a_folder_that_is_no_model_names_what_it_lacks_and_the_models_near(tmp_path):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / "rl").mkdir(exist_ok=True)
        (tmp_path / "rl" / name).touch()
    check_folder(tmp_path / "rl")
    with pytest.raises(CheckpointError, match="config.json, tokenizer.json, .*safetensors; models here: .*rl"):
        check_folder(tmp_path)
    with pytest.raises(CheckpointError, match="there is no folder .*; models here: .*rl"):
        check_folder(tmp_path / "lr")
    (tmp_path / "rl" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="it lacks tokenizer.json$"):
        check_folder(tmp_path / "rl")


def tiny(tokenizer):
    """A model of one layer with random weights."""
    cfg = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        max_len=64,
        d_model=16,
        n_layers=1,
        attention=GQAConfig(head_dim=8),
        ffn=DenseConfig(d_ff=16),
        rope=RopeConfig(interleaved=False),
    )
    model = Decoder(cfg)
    model.init_weights(0)
    return model


def test_a_folder_and_a_hub_id_load_in_the_dtype_asked_for(tmp_path, monkeypatch):
    tokenizer = Tokenizer.train(["one two three"], TokenizerConfig(vocab_size=270))
    model = tiny(tokenizer)
    save_model(model, tmp_path / "m")
    tokenizer.save(tmp_path / "m")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "m"))
    monkeypatch.chdir(tmp_path)
    for name in ("m", "owner/m"):
        loaded = load_folder(name, n_slots=1, max_context=0, dtype="bfloat16")
        assert loaded.engine.model.embed.weight.dtype == loaded.engine.model.dtype == torch.bfloat16
    assert load_folder("m", n_slots=1, max_context=0).engine.model.dtype == torch.float32


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(tmp_path, wrong):
    tokenizer = Tokenizer.train(["3 + 4 = 7"] * 3, TokenizerConfig(vocab_size=300))
    model = tiny(tokenizer)
    with torch.no_grad():
        model.layers[0].ffn.up.weight[3, 2] = wrong
    save_model(model, tmp_path)
    tokenizer.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"layers\.0\.ffn\.up\.weight holds NaN or infinite numbers"):
        load_folder(str(tmp_path), n_slots=1, max_context=0)


def test_only_large_weights_are_shown_as_they_load(tmp_path, monkeypatch, capsys):
    def read(path, dtype, progress=None, **_):
        return progress and progress(1, 1)

    monkeypatch.setattr("sobre.serve.load.load_model", read)
    (tmp_path / "model.safetensors").write_bytes(bytes(9))
    weights(tmp_path, "saved", False)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sobre.serve.load.LARGE_BYTES", 9)
    weights(tmp_path, "saved", False)
    assert "load, MB" in capsys.readouterr().err
    weights(tmp_path, "saved", True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"engine": "vllm", "dtype": "float16"},
        {"engine": "sglang", "revision": "v1"},
        {"revision": "v1", "model": ("a", "b")},
        {"port": 65536},
        {"port": -1},
        {"api_key": ("",)},
        {"api_key": ("clé",)},
        {"temperature": 2.1},
        {"top_p": 0.0},
        {"price_usd_per_h": float("nan")},
        {"price_usd_per_h": -1.0},
        {"n_slots": 0},
        {"max_waiting": -1},
        {"drain_s": 0.0},
        {"keep_alive_s": float("nan")},
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ServeConfig(**{"model": ("m",)} | wrong)


def test_flags_reach_the_settings():
    cfg = load(ServeConfig, ["out/rl", "--port", "0", "--api-key", "a", "b", "--price-usd-per-h", "0.5"], recipes=None)
    assert (cfg.model, cfg.port, cfg.api_key, cfg.price_usd_per_h) == (("out/rl",), 0, ("a", "b"), 0.5)
    chat = load(ChatConfig, ["out/rl", "--prompt", "hi", "--temperature", "0"], recipes=None)
    assert (chat.model, chat.prompt, chat.temperature) == ("out/rl", "hi", 0.0)


def test_keys_come_from_a_file_one_a_line(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# mine\none\n\n two admin name=boss usd_per_day=0.5 requests_per_min=3\n")
    assert read_lines(str(file)) == ("one", "two admin name=boss usd_per_day=0.5 requests_per_min=3")
    keys = read_keyring(ServeConfig(model=("m",), api_key=("zero",), api_key_file=str(file), requests_per_min=9))
    assert keys.find("none") is None
    assert (keys.find("one").limits.requests_per_min, keys.find("one").admin) == (9, False)
    boss = keys.find("two")
    assert (boss.name, boss.admin, boss.limits.usd_per_day, boss.limits.requests_per_min) == ("boss", True, 0.5, 3)
    for wrong, said in (("\n", "holds no key"), ("k colour=red", "none of"), ("k usd_per_day=x", "no number")):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match=said):
            read_keyring(ServeConfig(model=("m",), api_key_file=str(file)))
    with pytest.raises(ConfigError, match="given twice"):
        read_keyring(ServeConfig(model=("m",), api_key=("a", "a")))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_lines(str(tmp_path / "none"))


def test_examples_show_every_task_and_language_and_are_the_same_at_every_start():
    examples = example_problems()
    assert examples == example_problems()
    assert {example["lang"] for example in examples} == {"en", "fr", "zh"}
    assert sorted(example["task"] for example in examples) == sorted(TASKS)


def test_the_price_is_the_ones_given_or_the_ledgers_and_says_which():
    given = machine_price(3.6)
    assert given.usd(1000) == pytest.approx(1.0)
    assert usd_per_million(given, 1000) == pytest.approx(1.0)
    assert "1.500000 s" in cost_basis(given, 1.5)
    assert "--price-usd-per-h" in cost_basis(given, 1.5)
    listed = machine_price(None)
    assert listed in prices().values()
    assert listed.source in cost_basis(listed, 1)


def test_the_marks_around_an_answer_never_show_even_while_they_are_written():
    whole = "<answer>a < b</answer> <ans"
    seen = [without_tags(whole[:n]) for n in range(len(whole) + 1)]
    assert all(later.startswith(earlier) for earlier, later in zip(seen, seen[1:], strict=False))
    assert not any("<a" in text or "</" in text for text in seen)
    assert without_tags(whole, whole=True) == "a < b <ans"


def test_what_a_model_writes_cannot_command_the_terminal():
    assert printable("a\tb\n\x1b[31mred\x07\x9b1m\r七🙂") == "a\tb\n\ufffd[31mred\ufffd\ufffd1m\ufffd七🙂"
