"""Who will run a shape: the verdicts on known models, and on shapes that one engine or another refuses."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from sobre.app.plan import main
from sobre.models.config import (
    DenseConfig,
    GQAConfig,
    IndexerConfig,
    LightningConfig,
    MemoryConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
    RopeConfig,
)
from sobre.plan.engines import Verdict, verdicts
from sobre.plan.known import shape

replace = dataclasses.replace
V3 = ModelConfig(vocab_size=1000, max_len=512, attention=MLAConfig(q_rank=64, kv_rank=256, rope_dim=64), n_mtp=1)
MOE = V3.ffn
assert isinstance(MOE, MoEConfig)
QWEN = ModelConfig(
    vocab_size=1000,
    max_len=512,
    attention=GQAConfig(head_dim=64, qk_norm=True),
    ffn=DenseConfig(),
    rope=RopeConfig(interleaved=False),
)


def said(cfg: ModelConfig, model_type: str = "") -> dict[str, Verdict]:
    return {verdict.engine: verdict for verdict in verdicts(cfg, model_type)}


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v2-lite", "qwen3-8b", "qwen3-30b-a3b", "llama-3.1-8b"])
def test_released_models_run_everywhere(name: str):
    assert [(verdict.engine, verdict.faults) for verdict in verdicts(*shape(name))] == [
        ("transformers", ()),
        ("vllm", ()),
        ("sglang", ()),
        ("llama.cpp", ()),
    ]


@pytest.mark.parametrize(
    ("kv_rank", "rope_dim", "fits"), [(256, 64, True), (448, 64, True), (512, 64, True), (128, 32, False)]
)
def test_vllm_takes_three_widths_of_the_latent_and_is_told_what_to_change(kv_rank: int, rope_dim: int, fits: bool):
    attention = replace(V3.attention, kv_rank=kv_rank, rope_dim=rope_dim)
    found = said(replace(V3, attention=attention))
    assert found["vllm"].accepted is fits
    assert all(found[engine].accepted for engine in ("transformers", "sglang", "llama.cpp"))
    if not fits:
        (fault,) = found["vllm"].faults
        assert "kv_rank=128 + rope_dim=32 = 160" in fault
        assert "take kv_rank=256 and rope_dim=64" in fault


@pytest.mark.parametrize(
    ("cfg", "refusing", "word"),
    [
        (replace(V3, rope=RopeConfig(interleaved=False)), {"vllm"}, "rope.interleaved=true"),
        (replace(V3, attention=replace(V3.attention, bias=True)), {"vllm", "sglang", "llama.cpp"}, "bias=false"),
        (replace(V3, ffn=replace(MOE, n_shared=0)), {"vllm", "llama.cpp"}, "n_shared=1"),
        (
            replace(V3, memory=MemoryConfig(layers=(1,))),
            {"transformers", "vllm", "sglang", "llama.cpp"},
            "memory.layers=[]",
        ),
        (replace(V3, norm_eps=1e-3), {"vllm", "sglang", "llama.cpp"}, "1e-"),
        (
            replace(V3, attention=replace(V3.attention, indexer=IndexerConfig())),
            {"sglang", "llama.cpp"},
            "sparse attention",
        ),
        (replace(QWEN, attention=LightningConfig()), {"transformers", "vllm", "sglang", "llama.cpp"}, "no open family"),
        (replace(QWEN, attention=replace(QWEN.attention, o_bias=True, qkv_bias=True)), {"llama.cpp"}, "o_bias=false"),
    ],
)
def test_who_refuses_says_what_would_fit(cfg: ModelConfig, refusing: set[str], word: str):
    found = said(cfg)
    assert {engine for engine, verdict in found.items() if not verdict.accepted} == refusing
    assert all(any(word in fault for fault in found[engine].faults) for engine in refusing)


def test_what_an_engine_needs_or_leaves_out_is_remarked():
    found = said(V3)
    assert any("passed over" in remark for remark in found["transformers"].remarks)
    assert any("--attention-backend triton" in remark for remark in found["sglang"].remarks)
    assert any("on a CPU its latents are 576" in remark for remark in found["vllm"].remarks)
    assert said(QWEN)["vllm"].remarks == ()


def test_a_recipe_is_judged_by_the_model_that_its_budget_would_choose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "config.json").write_text(json.dumps({"model": {"attention": {"kind": "mla", "kv_rank": 512}}}))
    assert main(["engines", "rl/math", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("rl/math\n  transformers  yes  DeepseekV3ForCausalLM")
    assert re.search(r"vllm          no .*\n +kv_rank=\d+ \+ rope_dim=\d+ = \d+ is none of the latents", shown)
    assert f"{tmp_path}\n" in shown
    assert "kv_rank=512 + rope_dim=16 = 528" in shown
