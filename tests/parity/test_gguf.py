"""Our GGUF files in llama.cpp: the same logits, the same greedy tokens, the same ids of texts.

llama.cpp is asked in a process of its own, by this Python or by the one that SOBRE_LLAMA_PYTHON names.
"""

import dataclasses
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sobre.models.config import (
    DenseConfig,
    GQAConfig,
    Llama3RopeConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
    RopeConfig,
    YarnConfig,
)
from sobre.models.decoder import Decoder
from sobre.models.gguf.export import save_gguf
from sobre.models.step import StepInput
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("SOBRE_LLAMA_PYTHON", sys.executable)
GOLDEN = ROOT.parent / "shared" / "data" / "templates" / "tokenize_golden.jsonl.gz"
replace = dataclasses.replace
MOE = MoEConfig(n_experts=8, n_active=2, d_expert=32, d_ff=96, bias_speed=0.0)
SOFTMAX = replace(MOE, score="softmax", biased=False)
V3 = ModelConfig(
    vocab_size=400,
    max_len=128,
    d_model=64,
    n_layers=3,
    attention=MLAConfig(n_heads=4, q_rank=32, kv_rank=32, nope_dim=16, rope_dim=16, v_dim=16),
    ffn=MOE,
)
GQA = GQAConfig(n_heads=4, n_kv_heads=2, head_dim=16)
HALVES = RopeConfig(theta=100_000.0, interleaved=False)
LLAMA = replace(V3, attention=GQA, ffn=DenseConfig(d_ff=96), rope=HALVES, norm_eps=1e-5)
YARN = YarnConfig(factor=4.0, original_len=32, beta_fast=8.0)
V2 = replace(SOFTMAX, norm_weights=False)
TRAINED = {
    "deepseek-v3": replace(V3, n_mtp=1),
    "deepseek-v2-lite": replace(V3, attention=replace(V3.attention, q_rank=0), ffn=V2),
    "llama-3.1": replace(LLAMA, rope=replace(HALVES, llama3=Llama3RopeConfig(factor=4.0, original_len=32))),
    "qwen3": replace(LLAMA, attention=replace(GQA, head_dim=24, qk_norm=True), tied=True),
    "qwen3-moe": replace(
        LLAMA, attention=replace(GQA, qk_norm=True), ffn=replace(SOFTMAX, n_shared=0, n_dense_layers=0)
    ),
    "qwen2": replace(LLAMA, attention=replace(GQA, qkv_bias=True)),
}
ODD = {
    "v3 yarn, groups, two shared, tied": replace(
        V3,
        tied=True,
        ffn=replace(MOE, n_groups=4, n_active_groups=2, route_scale=2.5, n_shared=2, n_active=3),
        rope=RopeConfig(yarn=YARN),
    ),
    "v2 yarn": replace(V3, ffn=V2, rope=RopeConfig(yarn=replace(YARN, mscale=0.707, mscale_all_dim=0.707))),
    "v3 yarn without a factor on the softmax": replace(
        V3, rope=RopeConfig(yarn=replace(YARN, mscale=0.0, mscale_all_dim=0.0))
    ),
    "v3 dense, halves rotated, plain queries": replace(
        V3, attention=replace(V3.attention, q_rank=0), ffn=DenseConfig(d_ff=80), rope=RopeConfig(interleaved=False)
    ),
    "v3 halves rotated": replace(V3, rope=RopeConfig(interleaved=False)),
    "qwen3 yarn with its own factor": replace(
        LLAMA,
        attention=replace(GQA, qk_norm=True),
        rope=replace(HALVES, yarn=replace(YARN, mscale_all_dim=0.0, table_factor=1.3)),
    ),
    "llama all biases, pairs rotated": replace(
        LLAMA, attention=replace(GQA, qkv_bias=True, o_bias=True), ffn_bias=True, rope=RopeConfig()
    ),
    "seed-oss": replace(LLAMA, attention=replace(GQA, head_dim=24, qkv_bias=True)),
}
TEXTS = [
    "",
    "  two  spaces\n\n",
    "l'été, naïve café",
    "你好，世界 12345",
    "a<think>b</think>",
    "<｜User｜>x",
    "👩‍👩‍👧 ½ ²\t\r\n",
]


@dataclasses.dataclass
class Case:
    model: Decoder
    logits: torch.Tensor
    """Of ours, in float32, with the weights as the file has them."""
    theirs: dict


@pytest.fixture(scope="module")
def text() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))[:12])


@pytest.fixture(scope="module")
def tokenizer(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train([text], TokenizerConfig(vocab_size=384)).save(folder)
    return folder


def train(cfg: ModelConfig, ids: torch.Tensor, n_steps: int = 30) -> Decoder:
    """A model that has seen a little text: its logits are far from even."""
    model = Decoder(cfg)
    model.init_weights(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(n_steps):
        starts = torch.randint(0, len(ids) - 65, (4,), generator=generator).tolist()
        rows = torch.stack([ids[start : start + 65] for start in starts])
        out = model(StepInput(rows[:, :-1].flatten(), lengths=(64,) * 4))
        loss = torch.nn.functional.cross_entropy(model.logits(out.hidden_ND), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def scattered(cfg: ModelConfig) -> Decoder:
    """A model whose parts all have a say."""
    model = Decoder(cfg)
    model.init_weights(1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.ndim > 1 else parameter.add_(
                0.2 * torch.randn(parameter.shape, generator=generator)
            )
        for router in model.routers():
            router.bias_E.normal_(0, 0.1 if router.cfg.biased else 0.0, generator=generator)
    return model.eval()


@torch.no_grad()
def halved(model: Decoder) -> Decoder:
    """The same model with its matrices rounded to float16, as a file of that type has them."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and ".router." not in name:
            parameter.copy_(parameter.half().float())
    return model


@pytest.fixture(scope="module")
def cases(text: str, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    asked = subprocess.run([PYTHON, "-c", "import llama_cpp"], capture_output=True)
    if asked.returncode:
        pytest.skip(f"{PYTHON} has no llama_cpp; `pip install llama-cpp-python` builds it, SOBRE_LLAMA_PYTHON names it")
    folder = tmp_path_factory.mktemp("gguf")
    ids = torch.tensor(Tokenizer.load(tokenizer).encode(text))
    models = {name: train(cfg, ids) for name, cfg in TRAINED.items()} | {
        name: scattered(cfg) for name, cfg in ODD.items()
    }
    questions = []
    for i, (name, model) in enumerate(models.items()):
        save_gguf(model, tokenizer, folder / f"{i}.gguf", type="f16" if name in TRAINED else "f32")
        questions.append(
            {"file": str(folder / f"{i}.gguf"), "n_ctx": 128, "ids": ids[:40].tolist(), "n_new": 64 * (name in TRAINED)}
            | {"texts": TEXTS + golden() if i == 0 else []}
        )
    (folder / "questions.json").write_text(json.dumps(questions))
    peer = [PYTHON, str(Path(__file__).with_name("llama_peer.py")), str(folder / "questions.json")]
    subprocess.run([*peer, str(folder / "answers.json")], check=True, capture_output=True)
    answers = json.loads((folder / "answers.json").read_text())
    found = {}
    with torch.no_grad():
        for (name, model), theirs in zip(models.items(), answers, strict=True):
            model = halved(model) if name in TRAINED else model
            logits = model.logits(model(StepInput(ids[:40], lengths=(40,))).hidden_ND)
            found[name] = Case(model, logits, theirs | {"prompt": ids[:40].tolist()})
    return found


def golden() -> list[str]:
    if not GOLDEN.is_file():
        return []
    with gzip.open(GOLDEN, "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line)["text"] for line in file]


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_model_has_the_same_logits_there_and_writes_the_same_greedy_tokens(name: str, cases: dict) -> None:
    case = cases[name]
    assert case.logits.std() > 0.5
    assert (torch.tensor(case.theirs["logits"]) - case.logits).abs().max() < 1e-2
    ids = case.theirs["prompt"] + case.theirs["greedy"]
    with torch.no_grad():
        logits = case.model.logits(case.model(StepInput(torch.tensor(ids), lengths=(len(ids),))).hidden_ND)
    best = logits[39:-1].topk(2)
    clear = best.values[:, 0] - best.values[:, 1] > 1e-2
    assert clear.sum() > 10
    assert torch.equal(best.indices[clear, 0], torch.tensor(case.theirs["greedy"])[clear])


@pytest.mark.parametrize("name", ODD)
def test_in_float32_every_shape_that_is_accepted_has_the_same_logits_there(name: str, cases: dict) -> None:
    case = cases[name]
    assert case.logits.std() > 0.1
    assert (torch.tensor(case.theirs["logits"]) - case.logits).abs().max() < 1e-4


def test_texts_become_the_same_ids_there_and_make_no_special_token(cases: dict, tokenizer: Path) -> None:
    ours, texts = Tokenizer.load(tokenizer), TEXTS + golden()
    theirs = cases["deepseek-v3"].theirs["texts"]
    assert len(theirs) == len(texts)
    assert [text for text, ids in zip(texts, theirs, strict=True) if ours.encode(text) != ids] == []
