"""FP8 blocks that stay FP8: exact numbers, the logits of the weights multiplied out, a quarter of the memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.errors import CheckpointError, ConfigError
from sobre.kernels import fp8, kept, select
from sobre.kernels.kept import FP8, Blocks
from sobre.models.adapt import adapt
from sobre.models.checkpoint import load_model, save_model
from sobre.models.config import DenseConfig, GQAConfig, LoraConfig, MLAConfig, ModelConfig, MoEConfig, RopeConfig
from sobre.models.decoder import Decoder
from sobre.models.kept import QUANTIZATION
from sobre.models.quantised import quantised
from sobre.models.shards import factors_shape
from sobre.models.step import StepInput

from .conftest import build

CFG = ModelConfig(
    vocab_size=61,
    max_len=64,
    d_model=144,
    n_layers=2,
    attention=MLAConfig(n_heads=4, q_rank=136, kv_rank=40, nope_dim=24, rope_dim=8, v_dim=36),
    ffn=MoEConfig(n_experts=4, n_active=2, d_expert=132, d_ff=300, bias_speed=0.0),
    n_mtp=1,
)
"""Matrices of one block and of several, the last ones cut."""


def rounded(weight: torch.Tensor) -> fp8.Quantised:
    return fp8.quantise(weight.float(), fp8.TILE)


def zeros(weight: torch.Tensor) -> fp8.Quantised:
    values = torch.zeros(weight.shape, dtype=torch.uint8).view(fp8.FORMAT)
    return fp8.Quantised(values, torch.ones(factors_shape(tuple(weight.shape))), fp8.TILE)


def release(model: Decoder, folder: Path, quantise: Callable[[torch.Tensor], fp8.Quantised] = rounded) -> None:
    """A folder in the form of DeepSeek-V3's release: matrices in FP8, the rest in bfloat16."""
    save_model(model, folder, dtype=torch.bfloat16, extra=QUANTIZATION)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("_proj.weight", "proj_with_mqa.weight"))]:
        blocks = quantise(tensors[name])
        tensors |= {name: blocks.values_IK.contiguous(), f"{name}_scale_inv": blocks.scales.contiguous()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fp8")
    release(build(CFG), place)
    return place


def logits(model: Decoder) -> torch.Tensor:
    tokens_N = torch.randint(0, 61, (40,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.logits(model(StepInput(tokens_N, (28, 12))).hidden_ND)


def test_every_code_but_nan_is_widened_exactly():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    codes = codes[~codes.float().isnan()]
    got = kept.multiplied_out(Blocks(codes[None], torch.ones(1, 2)), torch.float32)[0]
    assert torch.equal(got, codes.float())
    assert torch.equal(got.signbit(), codes.float().signbit())


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("shape", [(2, 256), (130, 7), (1, 300)])
def test_fp8_blocks_are_multiplied_by_their_factor(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    factors = torch.rand(-(-shape[0] // 128), -(-shape[1] // 128), generator=generator)
    expected = torch.tensor(
        [[float(weight[i, j]) * float(factors[i // 128, j // 128]) for j in range(shape[1])] for i in range(shape[0])]
    )
    assert_close(kept.multiplied_out(Blocks(weight, factors), torch.float32), expected, rtol=1e-6, atol=0)


def test_a_product_by_bands_is_that_of_the_whole_matrix(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    weight = fp8.quantise(torch.randn(600, 200, generator=generator), fp8.TILE)
    x_NI = torch.randn(3, 200, generator=generator)
    whole = kept.reference(x_NI, Blocks(weight.values_IK, weight.scales))
    assert_close(whole, x_NI @ weight.dequantised().T)
    for numbers in (1, 200 * 256, 1 << 30):
        monkeypatch.setattr(kept, "BAND_NUMBERS", numbers)
        got = select.kept_linear(x_NI, Blocks(weight.values_IK, weight.scales))
        assert_close(got, whole, rtol=1e-5, atol=1e-4)


def test_what_a_gpu_would_do_is_near():
    """The input in tiles of FP8, too: its specification runs anywhere."""
    generator = torch.Generator().manual_seed(0)
    weight = fp8.quantise(torch.randn(260, 200, generator=generator), fp8.TILE)
    x_NI = torch.randn(5, 200, generator=generator)
    blocks = Blocks(weight.values_IK, weight.scales)
    near, exact = select._scaled_kept_linear(x_NI, blocks), kept.linear(x_NI, blocks)
    assert 1e-3 < float((near - exact).norm() / exact.norm()) < 4e-2


def test_kept_weights_have_the_logits_of_weights_multiplied_out(folder: Path):
    stays, plain = (load_model(folder, dtype=torch.float32, keep_fp8=keep) for keep in (True, False))
    low = {name for name, parameter in stays.named_parameters() if parameter.dtype in FP8}
    assert {"layers.0.attn.kv_up.weight", "layers.0.ffn.up.weight", "layers.1.ffn.down_EDF"} <= low
    assert not any(part in name for name in low for part in ("embed", "head", "norm", "router"))
    assert logits(plain).std() > 0.1
    assert_close(logits(stays), logits(plain), rtol=0, atol=1e-5)
    assert sum(p.numel() for p in stays.parameters()) == sum(p.numel() for p in plain.parameters())


def test_in_bfloat16_they_differ_by_its_rounding(folder: Path):
    stays, plain, exact = load_model(folder, keep_fp8=True), load_model(folder), load_model(folder, dtype=torch.float32)
    assert stays.dtype == plain.dtype == torch.bfloat16
    rounding = (logits(plain) - logits(exact)).abs().max()
    assert (logits(stays) - logits(exact)).abs().max() < 2 * rounding


def test_an_engine_answers_with_them_and_guesses_ahead(folder: Path):
    asked = [Request(str(i), (i, 2, 3), SamplingParams(max_tokens=9, temperature=0.0)) for i in range(3)]
    answers = [
        [
            answer.token_ids
            for answer in Engine(load_model(folder, dtype=torch.float32, keep_fp8=keep), EngineConfig()).generate(asked)
        ]
        for keep in (True, False)
    ]
    assert answers[0] == answers[1]


def test_they_leave_with_the_bytes_that_they_came_with(folder: Path, tmp_path: Path):
    save_model(load_model(folder, keep_fp8=True), tmp_path)
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8)), name
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
    assert config["dtype"] == "bfloat16"


def test_what_would_read_them_as_numbers_refuses(folder: Path):
    model = load_model(folder, keep_fp8=True)
    with pytest.raises(ConfigError, match=r"engine.weights='int8' does not take weights that stay in FP8"):
        quantised(model, "int8")
    with pytest.raises(ConfigError, match="an adapter does not take"):
        adapt(model, LoraConfig(rank=2), seed=0)
    with pytest.raises(ConfigError, match="engine.deterministic does not take"):
        Engine(model, EngineConfig(deterministic=True))


def test_a_folder_that_has_none_or_half_of_them_is_refused(folder: Path, tmp_path: Path):
    save_model(build(CFG), tmp_path)
    with pytest.raises(CheckpointError, match="holds no FP8 blocks to keep"):
        load_model(tmp_path, keep_fp8=True)
    name = "model.layers.0.self_attn.o_proj.weight"

    def load(**changes):
        tensors = load_file(folder / "model.safetensors") | changes
        save_file({key: value for key, value in tensors.items() if value is not None}, tmp_path / "model.safetensors")
        for keep in (False, True):
            load_model(tmp_path, keep_fp8=keep)

    load()
    with pytest.raises(CheckpointError, match=f"{name} is FP8 without {name}_scale_inv"):
        load(**{f"{name}_scale_inv": None})
    with pytest.raises(CheckpointError, match=r"needs \(2, 2\) factors"):
        load(**{f"{name}_scale_inv": torch.ones(2, 1)})
    with pytest.raises(CheckpointError, match="NaN among the FP8 numbers"):
        load(**{name: torch.full((144, 144), torch.nan).to(torch.float8_e4m3fn)})
    part = "model.layers.1.mlp.experts.2.up_proj.weight"
    with pytest.raises(
        CheckpointError, match=r"some matrices of the experts of layers\.1\.ffn are FP8 and some are not"
    ):
        load(**{part: torch.zeros(132, 144, dtype=torch.bfloat16), f"{part}_scale_inv": None})


PEAK = """
import sys, torch
from sobre.models.checkpoint import load_model
from sobre.models.shards import factors_shape
from sobre.models.step import StepInput
def rss(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024
@torch.no_grad()
def forward(model):
    model.logits(model(StepInput(torch.zeros(1, dtype=torch.long), (1,))).hidden_ND)
forward(load_model(sys.argv[2], keep_fp8=True))  # what torch loads on first use is not the weights
before = rss("VmRSS")
model = load_model(sys.argv[1], keep_fp8=True)
weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
loaded = rss("VmHWM") - before
forward(model)
print(loaded / weights, (rss("VmHWM") - before) / weights, weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_loading_and_a_token_need_little_more_than_the_fp8_numbers(folder: Path, tmp_path: Path):
    cfg = ModelConfig(
        vocab_size=256,
        max_len=64,
        d_model=1024,
        n_layers=6,
        attention=GQAConfig(n_heads=8, n_kv_heads=8, head_dim=128),
        ffn=DenseConfig(d_ff=3584),
        rope=RopeConfig(interleaved=False),
    )
    model = Decoder(cfg)
    release(model.requires_grad_(False), tmp_path, zeros)
    command = [sys.executable, "-c", PEAK, str(tmp_path), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded, used, weights = map(float, done.stdout.split())
    assert weights < 1.02 * sum(parameter.numel() for parameter in model.parameters())
    assert loaded < 1.10
    assert used < 1.35  # bands, twenty megabytes at most however large the model; in bfloat16 it would be 2
