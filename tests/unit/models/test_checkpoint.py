"""Model folders: what does not fit is named, nothing is loaded half, nothing is unpickled."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sobre.errors import CheckpointError
from sobre.models.checkpoint import load_model, save_model
from sobre.models.config import DenseConfig, GQAConfig, ModelConfig, MoEConfig

from .conftest import KINDS, build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(build(KINDS["mla+moe"]), tmp_path)
    return tmp_path


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_every_kind_comes_back_bit_for_bit(kind, tmp_path: Path):
    model = build(kind)
    save_model(model, tmp_path)
    back = load_model(tmp_path)
    assert {n: t.dtype for n, t in back.state_dict().items()} == {n: t.dtype for n, t in model.state_dict().items()}
    assert all(torch.equal(t, back.state_dict()[n]) for n, t in model.state_dict().items())


def test_bf16_weights_keep_the_selection_bias_in_float32(folder: Path, tmp_path: Path):
    model = load_model(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(router.bias_E.dtype == torch.float32 for router in model.routers())
    save_model(model, tmp_path / "half")
    saved = load_file(tmp_path / "half" / "model.safetensors")
    assert saved["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    assert saved["model.norm.weight"].dtype == torch.bfloat16


def test_all_faults_are_named_at_once(folder: Path):
    def spoil(tensors):
        tensors["model.norm.weight"] = torch.zeros(7)
        tensors["model.surprise"] = torch.zeros(1)
        del tensors["lm_head.weight"]

    rewrite(folder, spoil)
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    message = str(error.value)
    assert "model.norm.weight is (7,), the config asks for (32,)" in message
    assert "unexpected model.surprise" in message
    assert "missing lm_head.weight" in message


def test_a_truncated_file_is_named(folder: Path):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or corrupt"):
        load_model(folder)


def test_a_pickle_is_never_opened(folder: Path):
    (folder / "model.safetensors").unlink()
    (folder / "pytest.bin").write_bytes(b"not opened")
    with pytest.raises(CheckpointError, match="would have to be unpickled, which is never done"):
        load_model(folder)


def test_sharded_files_load_by_their_index_and_an_index_that_lies_is_refused(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / shard)
    (folder / "model.safetensors").unlink()
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(load_model(folder).embed.weight, tensors["model.embed_tokens.weight"])
    index.write_text(json.dumps({"weight_map": weight_map | {"x": "absent.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"not there: absent\.safetensors"):
        load_model(folder)


def test_folders_that_are_no_models_say_so(tmp_path: Path):
    with pytest.raises(CheckpointError, match="it has no config.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="'bert' is unknown; known: deepseek_v3, deepseek_v2, "):
        load_model(tmp_path)


def test_a_model_that_no_open_family_carries_cannot_be_saved(tmp_path: Path):
    cfg = ModelConfig(vocab_size=8, max_len=8, attention=GQAConfig(), ffn=MoEConfig(n_experts=4, d_expert=8))
    with pytest.raises(CheckpointError, match="no open family carries gqa attention .* with moe"):
        save_model(build(cfg), tmp_path)
    normed = ModelConfig(vocab_size=8, max_len=8, attention=GQAConfig(qk_norm=True), ffn=DenseConfig())
    with pytest.raises(CheckpointError, match="no open family"):
        save_model(build(normed), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scoring_func": "softmax"}, "scoring_func='softmax' is not supported; scoring_func='sigmoid' is"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"hidden_act": None}, "hidden_act=None is not supported; hidden_act='silu' is"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic' is not supported"),
        ({"model_type": "x", "auto_map": {}}, "'x' is unknown; .*; its auto_map names Python code, which is never run"),
    ],
)
def test_what_a_config_asks_for_and_we_do_not_have_is_named(folder: Path, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": float("nan")}, "cannot be that of a model: d_model=nan"),
        ({"hidden_size": "32"}, "d_model='32'"),
        ({"hidden_size": -32}, "d_model=-32"),
        ({"num_hidden_layers": 0}, "n_layers=0"),
        ({"num_attention_heads": 0}, "cannot be that of a model"),
        ({"rms_norm_eps": float("nan")}, "norm_eps=nan"),
        ({"rope_parameters": "none"}, "cannot be that of a model"),
        ({"num_hidden_layers": 10**6}, r"asks for 1,000,000 layers, and the files hold \d+ tensors"),
        ({"vocab_size": 10**9}, r"embed_tokens.weight is \(61, 32\), the config asks for \(1000000000, 32\)"),
        ({"dtype": "load"}, "dtype 'load' is none that weights are loaded in"),
        ({"quantization_config": "fp8"}, "quantization_config='fp8' is no table with a quant_method"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is no table with a quant_method"),
    ],
)
def test_a_config_that_no_model_can_have_is_refused_before_it_takes_memory(folder: Path, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_code_that_a_known_family_brings_is_not_run_and_that_is_said(folder: Path, caplog):
    config = json.loads((folder / "config.json").read_text())
    (folder / "code.py").write_text("raise SystemExit('this ran')")
    config["auto_map"] = {"AutoModelForCausalLM": "code.DeepseekV3ForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    load_model(folder)
    assert "its auto_map names Python code, which is never run; read as deepseek_v3" in caplog.text


def test_whole_numbers_are_no_weights(folder: Path):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(32, dtype=torch.int64)}))
    with pytest.raises(CheckpointError, match=r"model.norm.weight is torch.int64, where the model has torch.float32"):
        load_model(folder)


def test_a_key_that_the_config_lacks_is_named(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    del config["kv_lora_rank"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="lacks 'kv_lora_rank', which deepseek_v3 needs"):
        load_model(folder)
