"""GGUF files, read back by a reader of the test's own; llama.cpp itself is asked in tests/parity/test_gguf.py."""

import dataclasses
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sobre.cli import main
from sobre.errors import CheckpointError
from sobre.models.checkpoint import save_model
from sobre.models.config import ModelConfig, MoEConfig
from sobre.models.gguf.export import save_gguf
from sobre.models.gguf.vocabulary import vocabulary_fields
from sobre.plan.llama_cpp import faults
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

from .conftest import KINDS, build

SCALARS = {4: "<I", 5: "<i", 6: "<f", 7: "<?"}
V3 = dataclasses.replace(KINDS["mla+moe"], vocab_size=300)


def read(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, torch.Tensor]]]:
    """Fields, and (type, numbers) of every tensor."""
    data, at = path.read_bytes(), 0

    def take(form: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return value

    def text() -> str:
        nonlocal at
        length = take("<Q")
        at += length
        return data[at - length : at].decode()

    def value(kind: int) -> Any:
        if kind == 9:
            inner, count = take("<I"), take("<Q")
            return [value(inner) for _ in range(count)]
        return text() if kind == 8 else take(SCALARS[kind])

    assert (data[:4], struct.unpack_from("<I", data, 4)[0]) == (b"GGUF", 3)
    at = 8
    n_tensors, n_fields = take("<Q"), take("<Q")
    fields = {text(): value(take("<I")) for _ in range(n_fields)}
    listed = [(text(), [take("<Q") for _ in range(take("<I"))], take("<I"), take("<Q")) for _ in range(n_tensors)]
    begin = -(-at // 32) * 32
    return fields, {
        name: (kind, numbers(data, begin + offset, shape[::-1], kind)) for name, shape, kind, offset in listed
    }


def numbers(data: bytes, begin: int, shape: list[int], kind: int) -> torch.Tensor:
    assert begin % 32 == 0
    count = int(np.prod(shape))
    if kind == 8:
        blocks = np.frombuffer(data, np.dtype([("scale", "<f2"), ("codes", "i1", 32)]), count // 32, begin)
        flat = blocks["scale"].astype(np.float32)[:, None] * blocks["codes"]
    else:
        flat = np.frombuffer(data, {0: "<f4", 1: "<f2"}[kind], count, begin).astype(np.float32)
    return torch.from_numpy(flat.reshape(shape))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(["one two one two three " * 9], TokenizerConfig(vocab_size=280, min_frequency=2)).save(folder)
    return folder


def test_every_number_of_the_model_comes_back_and_the_mtp_module_does_not(tokenizer: Path, tmp_path: Path):
    model = build(V3)
    save_gguf(model, tokenizer, tmp_path / "m.gguf", type="f32")
    fields, tensors = read(tmp_path / "m.gguf")
    ours = model.state_dict()
    assert torch.equal(tensors["blk.2.ffn_down_exps.weight"][1], ours["layers.2.ffn.down_EDF"])
    assert torch.equal(tensors["blk.1.exp_probs_b.bias"][1], ours["layers.1.ffn.router.bias_E"])
    kv_up = ours["layers.0.attn.kv_up.weight"].view(4, 8 + 12, 16)
    assert torch.equal(tensors["blk.0.attn_k_b.weight"][1], kv_up[:, :8].transpose(1, 2))
    assert torch.equal(tensors["blk.0.attn_v_b.weight"][1], kv_up[:, 8:])
    main_model = sum(tensor.numel() for name, tensor in ours.items() if not name.startswith("mtp."))
    assert sum(tensor.numel() for _, tensor in tensors.values()) == main_model
    assert fields["general.architecture"] == "deepseek2"
    assert fields["deepseek2.attention.key_length"] == 16 + 4
    assert (fields["deepseek2.expert_group_count"], fields["deepseek2.expert_group_used_count"]) == (4, 2)
    assert fields["deepseek2.expert_gating_func"] == 2


def test_q8_0_errs_by_half_a_step_and_what_it_cannot_hold_is_float16(tokenizer: Path, tmp_path: Path):
    model = build(V3)
    save_gguf(model, tokenizer, tmp_path / "m.gguf", type="q8_0")
    _, tensors = read(tmp_path / "m.gguf")
    kind, found = tensors["blk.1.ffn_up_exps.weight"]
    wanted = model.state_dict()["layers.1.ffn.up_EFD"]
    assert kind == 8
    assert (
        (found - wanted).abs() <= wanted.abs().amax(-1, keepdim=True) / 127 * 0.57
    ).all()  # half a code, and a scale in float16
    kind, found = tensors["blk.1.ffn_down_exps.weight"]  # rows of 16
    assert kind == 1
    assert_close(found, model.state_dict()["layers.1.ffn.down_EDF"], rtol=1e-3, atol=1e-6)
    assert {kind for name, (kind, _) in tensors.items() if name.endswith(("norm.weight", "ffn_gate_inp.weight"))} == {0}


def test_the_vocabulary_has_a_token_for_every_id_and_text_makes_no_control_one(tokenizer: Path):
    fields = vocabulary_fields(tokenizer, 300)
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == len(set(tokens)) == 300
    assert kinds[:7] == [3] * 7
    assert tokens[:2] == ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]
    assert set(kinds[-20:]) == {5}
    assert fields["tokenizer.ggml.pre"] == "qwen2"
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert "{%" in fields["tokenizer.chat_template"]
    with pytest.raises(CheckpointError, match="the tokenizer has ids up to"):
        vocabulary_fields(tokenizer, 100)


def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused(tokenizer: Path, tmp_path: Path):
    described = (tokenizer / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(described.replace(r"\\p{N}|", r"\\p{N}{1,2}|"))
    with pytest.raises(CheckpointError, match="no name for that llama.cpp knows; known: qwen2, llama-bpe"):
        vocabulary_fields(tmp_path, 300)
    (tmp_path / "tokenizer.json").write_text(described.replace(r"\\p{N}|", r"\\p{N}{1,3}|"))
    assert vocabulary_fields(tmp_path, 300)["tokenizer.ggml.pre"] == "llama-bpe"


@pytest.mark.parametrize(
    ("kind", "said"), [("sparse mla", "sparse attention"), ("lightning+moe", "linear attention"), ("gqa+dense", "")]
)
def test_what_llama_cpp_does_not_have_is_named_before_anything_is_written(
    kind: str, said: str, tokenizer: Path, tmp_path: Path
):
    cfg = dataclasses.replace(KINDS[kind], vocab_size=300)
    if not said:
        assert faults(cfg) == []
        return
    with pytest.raises(CheckpointError, match=said):
        save_gguf(build(cfg), tokenizer, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_shared": 0}, "n_shared=1 or more"),
        ({"score": "softmax", "biased": False}, "by its two best"),
        ({"n_groups": 8, "n_active_groups": 4}, "one expert to a group"),
        ({"dense_layers": (2,)}, "only the first layers"),
    ],
)
def test_a_router_that_would_compute_otherwise_is_refused(changes: dict, said: str):
    moe = V3.ffn
    assert isinstance(moe, MoEConfig)
    changed = dataclasses.replace(moe, bias_speed=0.0, **changes)
    assert any(said in fault for fault in faults(dataclasses.replace(V3, ffn=changed)))
    assert faults(V3) == []


def test_a_number_beyond_float16_is_named_instead_of_becoming_infinite(tokenizer: Path, tmp_path: Path):
    model = build(V3)
    with torch.no_grad():
        model.layers[0].ffn.up.weight[0, 0] = 1e5
    with pytest.raises(CheckpointError, match=r"blk.0.ffn_up.weight holds 1e\+05, beyond float16"):
        save_gguf(model, tokenizer, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
    save_gguf(model, tokenizer, tmp_path / "m.gguf", type="q8_0")


def test_convert_writes_a_file_named_after_the_model_and_says_what_stayed_behind(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = tmp_path / "mine"
    model = build(V3)
    save_model(model, source)
    for file in tokenizer.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "gguf"]) == 0
    _, tensors = read(tmp_path / "out" / "mine-f16.gguf")
    assert torch.equal(tensors["token_embd.weight"][1], model.embed.weight.half().float())
    said = capsys.readouterr().err
    assert "as deepseek2 for llama.cpp" in said
    assert "multi-token prediction module stays behind" in said
    assert main(["convert", str(source), str(tmp_path / "small.gguf"), "--to", "gguf", "--type", "q8_0"]) == 0
    assert "tensors stay f16" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "small.gguf"), "--to", "gguf"]) == 2
    assert main(["convert", str(source), str(tmp_path / "other"), "--type", "q8_0"]) == 2
    assert "is for --to gguf" in capsys.readouterr().err


def test_kinds_without_experts_and_with_ties_keep_their_names(tokenizer: Path, tmp_path: Path):
    cfg: ModelConfig = dataclasses.replace(KINDS["gqa+dense"], vocab_size=300)
    save_gguf(build(cfg), tokenizer, tmp_path / "m.gguf", type="f32")
    fields, tensors = read(tmp_path / "m.gguf")
    assert fields["general.architecture"] == "qwen3"
    assert "output.weight" not in tensors
    assert tensors["blk.0.attn_q_norm.weight"][1].shape == (12,)
