"""Files of weights: every claim of a header or an index is checked, FP8 is multiplied out, memory stays small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sobre.errors import CheckpointError
from sobre.models.checkpoint import load_model, save_model
from sobre.models.config import DenseConfig, GQAConfig, ModelConfig, RopeConfig
from sobre.models.decoder import Decoder
from sobre.models.shards import DTYPES, Shards, header

from .conftest import KINDS, build


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(build(KINDS["mla+moe"]), tmp_path)
    return tmp_path


def test_every_dtype_is_read_as_safetensors_reads_it(tmp_path: Path):
    tensors = {name: torch.arange(6).reshape(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"none": torch.zeros(0, 3), "scalar": torch.tensor(7.5)}
    save_file(tensors, tmp_path / "model.safetensors")
    shards, expected = Shards(tmp_path), load_file(tmp_path / "model.safetensors")
    for name, tensor in expected.items():
        if not name.startswith("F8"):
            place = torch.empty_like(tensor)
            shards.read_into(name, place)
            assert torch.equal(place, tensor), name


def test_a_folder_in_deepseek_s_fp8_form_loads(folder: Path):
    plain = load_model(folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.o_proj.weight"
    tensors[name] = (tensors[name] / 0.5).to(torch.float8_e4m3fn)
    tensors[name + "_scale_inv"] = torch.tensor([[0.5]])
    expected = tensors[name].float() * 0.5
    save_file(tensors, folder / "model.safetensors")
    loaded = load_model(folder)
    assert torch.equal(loaded.layers[1].attn.o.weight, expected)
    assert torch.equal(loaded.layers[0].attn.o.weight, plain.layers[0].attn.o.weight)
    del tensors[name + "_scale_inv"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="is FP8 without"):
        load_model(folder)


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}


@pytest.mark.parametrize(
    "head",
    [
        entry(0, 16, [4, 4]),
        entry(0, 400, [100]),
        entry(-8, 8, [4]),
        entry(0, 16, [-4]),
        entry(0, 16, [4], "PICKLE"),
        entry(0, 16, [4.5]),
        entry(0, 16, [float("inf")]),
        entry(0, 12, [3]),
        entry(4, 16, [3]),
        entry(0, 16, [4]) | {"y": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
        {"x": 3},
        [1],
    ],
)
def test_a_header_that_lies_is_refused(head, tmp_path: Path):
    text = json.dumps(head).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        header(file)


TWICE = b'{"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'
DEEP = b"[" * 50_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"\xff" * 8 + b"{}",
        (2).to_bytes(8, "little") + b"{]",
        len(TWICE).to_bytes(8, "little") + TWICE + bytes(4),
        len(DEEP).to_bytes(8, "little") + DEEP,
    ],
    ids=["empty", "short", "long header", "no JSON", "a name twice", "deep"],
)
def test_a_file_that_is_no_safetensors_is_refused(content, tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        header(tmp_path / "model.safetensors")


def test_an_index_that_lies_is_refused_by_name(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:5]}, folder / "a.safetensors")
    save_file({name: tensors[name] for name in names[5:]}, folder / "b.safetensors")
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    right = {name: "a.safetensors" if name in names[:5] else "b.safetensors" for name in names}
    for change, message in (
        ({names[0]: "b.safetensors"}, f"{names[0]} is in a.safetensors, not b.safetensors"),
        ({"ghost": "a.safetensors"}, "ghost is not in a.safetensors"),
        ({"x": "../a.safetensors"}, "outside its folder"),
    ):
        index.write_text(json.dumps({"weight_map": right | change}))
        with pytest.raises(CheckpointError, match=message):
            load_model(folder)
    index.write_text(json.dumps({"weight_map": {name: file for name, file in right.items() if name != names[7]}}))
    with pytest.raises(CheckpointError, match=f"{names[7]} of b.safetensors is not in the index"):
        load_model(folder)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="is no index"):
        load_model(folder)


def test_progress_counts_every_byte_once(folder: Path):
    seen: list[tuple[int, int]] = []
    load_model(folder, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_other_quantizations_and_absent_hub_models_are_refused(folder: Path, monkeypatch):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(CheckpointError, match="quantized by 'gptq' are not supported"):
        load_model(folder)
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        CheckpointError, match="cannot be reached. .*hf download some/model --local-dir model.*no network"
    ):
        load_model("some/model")


def test_a_hub_id_is_fetched_at_its_revision_and_a_path_never_is(folder: Path, monkeypatch):
    import huggingface_hub

    asked: list[tuple] = []

    def fetch(model, *, revision, allow_patterns, ignore_patterns):
        asked.append((model, revision, "*.safetensors" in allow_patterns, any("bin" in one for one in allow_patterns)))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(folder.parent)
    assert load_model("some/model", revision="v1").cfg == load_model(folder).cfg
    assert asked == [("some/model", "v1", True, False)]
    for path in (f"{folder.name}/nothing", "./some/model", "nothing", "some/model/deeper"):
        with pytest.raises(CheckpointError, match="no config.json"):
            load_model(path)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("GatedRepoError", "accept its terms at https://huggingface.co/some/model, then set HF_TOKEN"),
        ("RepositoryNotFoundError", "the hub has no such model; a private one needs HF_TOKEN"),
        ("RevisionNotFoundError", "has no revision v9"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(name: str, said: str, monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_, **__):
        kind = getattr(errors, name)
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=said):
        load_model("some/model", revision="v9")


PEAK = """
import sys, torch
from sobre.models.checkpoint import load_model
torch.empty(1)
def rss(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024
load_model(sys.argv[3])  # what torch loads on first use is not the weights
assert not {"torch._dynamo", "sympy"} & {*sys.modules}, "loading a model takes seconds more where it imports a compiler"
before = rss("VmRSS")
model = load_model(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print((rss("VmHWM") - before) / weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_needs_little_more_memory_than_the_weights(dtype, tmp_path: Path):
    cfg = ModelConfig(
        vocab_size=4096,
        max_len=64,
        d_model=512,
        n_layers=12,
        attention=GQAConfig(n_heads=8, n_kv_heads=4, head_dim=64),
        ffn=DenseConfig(d_ff=3072),
        rope=RopeConfig(interleaved=False),
    )
    save_model(Decoder(cfg), tmp_path / "large")
    save_model(build(KINDS["mla+moe+memory"]), tmp_path / "small")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "large"), dtype, str(tmp_path / "small")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.10
