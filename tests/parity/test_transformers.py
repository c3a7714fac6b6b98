"""The same weights in our decoder and in `transformers`: equal logits, both ways through the files."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sobre.models.checkpoint import load_model, save_model
from sobre.models.config import DenseConfig, GQAConfig, MLAConfig, ModelConfig, MoEConfig, RopeConfig, YarnConfig
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput

transformers = pytest.importorskip("transformers")

MLA = MLAConfig(n_heads=4, q_rank=24, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=12)
MOE = MoEConfig(n_experts=8, n_active=3, d_expert=16, d_ff=40)
V3 = ModelConfig(vocab_size=61, max_len=96, d_model=32, n_layers=3, attention=MLA, ffn=MOE)
GQA = GQAConfig(n_heads=4, n_kv_heads=2, head_dim=12)
DENSE = ModelConfig(
    vocab_size=61,
    max_len=96,
    d_model=32,
    n_layers=2,
    attention=GQA,
    ffn=DenseConfig(d_ff=40),
    rope=RopeConfig(theta=500_000.0, interleaved=False),
)
replace = dataclasses.replace
SHAPES = {
    "v3": ("DeepseekV3ForCausalLM", V3),
    "v3 grouped": (
        "DeepseekV3ForCausalLM",
        replace(V3, ffn=replace(MOE, n_groups=4, n_active_groups=2, route_scale=2.5)),
    ),
    "v3 q unfactored, raw weights": (
        "DeepseekV3ForCausalLM",
        replace(V3, attention=replace(MLA, q_rank=0), ffn=replace(MOE, norm_weights=False)),
    ),
    "v3 all routing, two shared, tied": (
        "DeepseekV3ForCausalLM",
        replace(V3, tied=True, ffn=replace(MOE, n_dense_layers=0, n_shared=2, n_active=1)),
    ),
    "v3 yarn": (
        "DeepseekV3ForCausalLM",
        replace(V3, rope=RopeConfig(yarn=YarnConfig(factor=4.0, original_len=24, beta_fast=8.0))),
    ),
    "v3 dense": ("DeepseekV3ForCausalLM", replace(V3, ffn=DenseConfig(d_ff=40))),
    "llama": ("LlamaForCausalLM", DENSE),
    "qwen2": ("Qwen2ForCausalLM", replace(DENSE, attention=replace(GQA, qkv_bias=True), tied=True)),
    "qwen3": ("Qwen3ForCausalLM", replace(DENSE, attention=replace(GQA, n_kv_heads=1, qk_norm=True))),
}


def filled(cfg: ModelConfig) -> Decoder:
    model, generator = Decoder(cfg), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.15, generator=generator)
        for router in model.routers():
            router.bias_E.uniform_(0.0, 0.3, generator=generator)
    return model.eval()


def our_logits(model: Decoder, tokens_BT: torch.Tensor) -> torch.Tensor:
    step = StepInput(tokens_BT.flatten(), lengths=(tokens_BT.shape[1],) * tokens_BT.shape[0])
    with torch.no_grad():
        return model.logits(model(step).hidden_ND).unflatten(0, tokens_BT.shape)


@pytest.fixture
def tokens_BT() -> torch.Tensor:
    return torch.randint(0, 61, (2, 70), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", list(SHAPES))
def test_our_folder_loads_there_with_equal_logits_and_comes_back(shape, tokens_BT, tmp_path: Path):
    architecture, cfg = SHAPES[shape]
    ours = filled(cfg)
    save_model(ours, tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    assert type(theirs).__name__ == architecture
    with torch.no_grad():
        their_logits_BTV = theirs(tokens_BT).logits
    our_logits_BTV = our_logits(ours, tokens_BT)
    assert our_logits_BTV.std() > 0.1  # the comparison means something
    assert_close(our_logits_BTV, their_logits_BTV, rtol=0, atol=1e-4)

    theirs.save_pretrained(tmp_path / "theirs")
    back = load_model(tmp_path / "theirs")
    assert_close(our_logits(back, tokens_BT), our_logits_BTV, rtol=0, atol=0)


def test_the_mtp_module_survives_our_files_and_is_left_out_by_theirs(tokens_BT, tmp_path: Path, caplog):
    ours = filled(replace(V3, n_mtp=1))
    save_model(ours, tmp_path / "ours")
    back = load_model(tmp_path / "ours")
    for (name, a), (_, b) in zip(ours.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    again = load_model(tmp_path / "theirs")
    assert again.mtp is None
    assert "loaded without it" in caplog.text
    assert_close(our_logits(again, tokens_BT), our_logits(ours, tokens_BT), rtol=0, atol=0)
