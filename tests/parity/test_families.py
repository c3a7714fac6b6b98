"""The same weights in our decoder and in `transformers`: equal logits, both ways through the files."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sobre.models.cache import BlockTables, PagedCache
from sobre.models.checkpoint import load_model, save_model
from sobre.models.config import (
    BLOCK,
    DenseConfig,
    GQAConfig,
    IndexerConfig,
    LightningConfig,
    Llama3RopeConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
    ResidualConfig,
    RopeConfig,
    YarnConfig,
)
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput

transformers = pytest.importorskip("transformers")

MLA = MLAConfig(n_heads=4, q_rank=24, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=12)
MOE = MoEConfig(n_experts=8, n_active=3, d_expert=16, d_ff=40, bias_speed=0.0)
SOFTMAX = MoEConfig(
    n_experts=8, n_active=3, d_expert=16, n_shared=0, d_ff=40, score="softmax", biased=False, bias_speed=0.0
)
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
YARN = YarnConfig(factor=4.0, original_len=24, beta_fast=8.0)
TABLE_YARN = YarnConfig(factor=4.0, original_len=24, mscale_all_dim=0.0)
LLAMA3 = Llama3RopeConfig(factor=4.0, original_len=24)
replace = dataclasses.replace


def rope(**changes) -> RopeConfig:
    return replace(DENSE.rope, **changes)


def gqa_moe(moe: MoEConfig, **switches) -> ModelConfig:
    return replace(DENSE, n_layers=3, attention=replace(GQA, **switches), ffn=moe)


SHAPES = {
    "deepseek_v3": V3,
    "deepseek_v3 grouped": replace(V3, ffn=replace(MOE, n_groups=4, n_active_groups=2, route_scale=2.5)),
    "deepseek_v3 q unfactored, raw weights, norm_eps": replace(
        V3, attention=replace(MLA, q_rank=0), ffn=replace(MOE, norm_weights=False), norm_eps=1e-3
    ),
    "deepseek_v3 all routing, two shared, tied": replace(
        V3, tied=True, ffn=replace(MOE, n_dense_layers=0, n_shared=2, n_active=1)
    ),
    "deepseek_v3 yarn": replace(V3, rope=RopeConfig(yarn=replace(YARN, mscale=0.707, mscale_all_dim=1.0))),
    "deepseek_v3 yarn on the table": replace(V3, rope=RopeConfig(yarn=TABLE_YARN)),
    "deepseek_v3 dense, halves rotated, biases": replace(
        V3, ffn=DenseConfig(d_ff=40), attention=replace(MLA, bias=True), rope=RopeConfig(interleaved=False)
    ),
    "deepseek_v2": replace(V3, ffn=replace(SOFTMAX, norm_weights=False, route_scale=2.0, n_shared=2)),
    "deepseek_v2 grouped, yarn": replace(
        V3,
        ffn=replace(SOFTMAX, norm_weights=False, n_shared=1, n_groups=4, n_active_groups=2, route_scale=16.0),
        rope=RopeConfig(yarn=replace(YARN, mscale=0.707, mscale_all_dim=0.707)),
    ),
    "deepseek_v2 lite": replace(
        V3, attention=replace(MLA, q_rank=0), ffn=replace(SOFTMAX, norm_weights=False, n_shared=2)
    ),
    "llama": DENSE,
    "llama 3.1, one head a group, tied": replace(
        DENSE, attention=replace(GQA, n_kv_heads=4), tied=True, rope=rope(llama3=LLAMA3)
    ),
    "llama all biases": replace(DENSE, attention=replace(GQA, qkv_bias=True, o_bias=True), ffn_bias=True),
    "qwen2 tied": replace(DENSE, attention=replace(GQA, qkv_bias=True), tied=True),
    "qwen2 yarn": replace(DENSE, attention=replace(GQA, qkv_bias=True), rope=rope(yarn=TABLE_YARN)),
    "qwen3": replace(DENSE, attention=replace(GQA, n_kv_heads=1, qk_norm=True)),
    "qwen3 biases, yarn with its own factor": replace(
        DENSE,
        attention=replace(GQA, qk_norm=True, qkv_bias=True, o_bias=True),
        rope=rope(yarn=replace(TABLE_YARN, table_factor=1.3)),
    ),
    "qwen3_moe": gqa_moe(replace(SOFTMAX, n_dense_layers=0), qk_norm=True),
    "qwen3_moe raw weights, every second layer": gqa_moe(
        replace(SOFTMAX, n_dense_layers=0, dense_layers=(0, 2), norm_weights=False), qk_norm=True
    ),
    "glm4_moe": gqa_moe(replace(MOE, route_scale=2.5), qk_norm=True, qkv_bias=True, rope_dim=6),
    "glm4_moe grouped, whole heads rotated": gqa_moe(
        replace(MOE, n_groups=2, n_dense_layers=0, norm_weights=False), n_kv_heads=1
    ),
    "glm4_moe no layer routes": replace(DENSE, attention=replace(GQA, qk_norm=True, qkv_bias=True, rope_dim=6)),
    "minimax_m2": gqa_moe(
        replace(MOE, n_shared=0, n_dense_layers=0, d_ff=16), qk_norm=True, norm_all_heads=True, rope_dim=6
    ),
    "minimax_m2 whole heads rotated, one group": gqa_moe(
        replace(MOE, n_shared=0, n_dense_layers=0, d_ff=16), qk_norm=True, norm_all_heads=True, n_kv_heads=1
    ),
    "minimax": replace(
        gqa_moe(replace(SOFTMAX, n_dense_layers=0, d_ff=16)),
        attention=LightningConfig(n_heads=4, n_kv_heads=2, head_dim=12, full_layers=(1,), block=5),
        residual=ResidualConfig(attn_alpha=1.1, attn_beta=0.9, linear_alpha=1.2, linear_beta=0.8, ffn_alpha=1.3),
    ),
    "minimax all linear, one head a group": replace(
        gqa_moe(replace(SOFTMAX, n_dense_layers=0, d_ff=16)),
        attention=LightningConfig(n_heads=3, n_kv_heads=3, head_dim=8),
        residual=ResidualConfig(),
    ),
    "deepseek_v32": replace(
        V3,
        attention=replace(MLA, indexer=IndexerConfig(n_heads=16, dim=8, n_keys=16)),
        ffn=replace(MOE, route_scale=2.5),
    ),
    "deepseek_v32 all keys seen, index all rotary": replace(
        V3, attention=replace(MLA, indexer=IndexerConfig(n_heads=16, dim=4, n_keys=96))
    ),
    "deepseek_v32 yarn": replace(
        V3,
        attention=replace(MLA, indexer=IndexerConfig(n_heads=16, dim=8, n_keys=40)),
        rope=RopeConfig(yarn=replace(YARN, mscale=1.0, mscale_all_dim=1.0)),
    ),
    "ernie4_5 tied": replace(DENSE, tied=True, rope=rope(interleaved=True)),
    "ernie4_5 biases": replace(
        DENSE, attention=replace(GQA, qkv_bias=True, o_bias=True), ffn_bias=True, rope=rope(interleaved=True)
    ),
    "ernie4_5_moe": replace(
        gqa_moe(replace(SOFTMAX, biased=True, n_shared=2, n_dense_layers=1)), rope=rope(interleaved=True)
    ),
    "ernie4_5_moe no layer routes": replace(
        gqa_moe(replace(SOFTMAX, biased=True, n_dense_layers=3)), rope=rope(interleaved=True)
    ),
    "ernie4_5_moe every second layer, none shared": replace(
        gqa_moe(replace(SOFTMAX, biased=True, n_dense_layers=1, dense_layers=(2, 4))),
        n_layers=5,
        rope=rope(interleaved=True),
    ),
    "seed_oss": replace(DENSE, attention=replace(GQA, qkv_bias=True)),
    "seed_oss other biases": replace(DENSE, attention=replace(GQA, o_bias=True), ffn_bias=True),
}
"""A name begins with the model_type."""


def filled(cfg: ModelConfig) -> Decoder:
    model, generator = Decoder(cfg), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.15, generator=generator)
        for router in model.routers():
            router.bias_E.uniform_(0.0, 0.3 if router.cfg.biased else 0.0, generator=generator)
    return model.eval()


def our_logits(model: Decoder, tokens_BT: torch.Tensor) -> torch.Tensor:
    step = StepInput(tokens_BT.flatten(), lengths=(tokens_BT.shape[1],) * tokens_BT.shape[0])
    with torch.no_grad():
        return model.logits(model(step).hidden_ND).unflatten(0, tokens_BT.shape)


def decoded_logits(model: Decoder, tokens_BT: torch.Tensor, prefill: int = 60) -> torch.Tensor:
    """The same through the cache: a prefill, then token by token."""
    n_rows, length = tokens_BT.shape
    n_blocks = -(-length // BLOCK)
    tables = BlockTables(n_rows, length, "cpu")
    for slot in range(n_rows):
        tables.place(slot, range(slot * n_blocks, (slot + 1) * n_blocks))
    cache, parts, start = PagedCache(model.cfg, tables, n_rows * n_blocks, torch.float32), [], 0
    slots = tuple(range(n_rows))
    for size in (prefill, *[1] * (length - prefill)):
        new_N = tokens_BT[:, start : start + size].flatten()
        step = StepInput(new_N, lengths=(size,) * n_rows, starts=(start,) * n_rows, slots=slots)
        with torch.no_grad():
            parts.append(model.logits(model(step, cache).hidden_ND).unflatten(0, (n_rows, size)))
        start += size
    return torch.cat(parts, 1)


@pytest.fixture
def tokens_BT() -> torch.Tensor:
    return torch.randint(0, 61, (2, 70), generator=torch.Generator().manual_seed(1))


def by_family() -> list:
    """The first shape of every family runs in `make check`, the odd ones with the whole suite."""
    seen: set[str] = set()
    cases = []
    for shape in SHAPES:
        cases.append(pytest.param(shape, marks=[pytest.mark.slow] if shape.split()[0] in seen else []))
        seen.add(shape.split()[0])
    return cases


@pytest.mark.parametrize("shape", by_family())
@pytest.mark.slow
def test_our_folder_loads_there_with_equal_logits_and_comes_back(shape, tokens_BT, tmp_path: Path):
    cfg, model_type = SHAPES[shape], shape.split()[0]
    ours = filled(cfg)
    ours.family = model_type
    save_model(ours, tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    assert theirs.config.model_type == model_type
    with torch.no_grad():
        their_logits_BTV = theirs(tokens_BT).logits
    our_logits_BTV = our_logits(ours, tokens_BT)
    assert our_logits_BTV.std() > 0.1  # the comparison means something
    assert_close(our_logits_BTV, their_logits_BTV, rtol=0, atol=1e-4)

    theirs.save_pretrained(tmp_path / "theirs")
    back = load_model(tmp_path / "theirs")
    assert back.cfg == cfg
    assert_close(our_logits(back, tokens_BT), our_logits_BTV, rtol=0, atol=0)
    assert_close(decoded_logits(back, tokens_BT), our_logits_BTV, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n_heads", [1, 2])
def test_of_keys_with_equal_scores_the_earlier_are_chosen(n_heads, tokens_BT, tmp_path: Path):
    """Few index heads give many zeros. `transformers` leaves them to `topk`; told to keep the order, it agrees."""
    ours = filled(replace(V3, attention=replace(MLA, indexer=IndexerConfig(n_heads=n_heads, dim=8, n_keys=16))))
    ours.family = "deepseek_v32"
    save_model(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()

    def ordered(scores, k, dim):
        found = torch.sort(scores, dim=dim, descending=True, stable=True)
        return torch.return_types.topk((found.values[..., :k], found.indices[..., :k]))

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "topk", ordered)
        their_logits_BTV = theirs(tokens_BT).logits
    assert_close(our_logits(ours, tokens_BT), their_logits_BTV, rtol=0, atol=1e-4)
    assert_close(decoded_logits(ours, tokens_BT), their_logits_BTV, rtol=0, atol=1e-4)


def test_normalised_weights_of_v2_are_not_scaled(tokens_BT, tmp_path: Path):
    """The release makes the weights sum to 1 or multiplies them; `transformers` multiplies them in any case."""
    ours = filled(replace(V3, ffn=replace(SOFTMAX, norm_weights=False, n_shared=1, n_dense_layers=2, route_scale=2.0)))
    save_model(ours, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"norm_topk_prob": True}))
    model, step = load_model(tmp_path), StepInput(tokens_BT[0], lengths=(70,))
    inputs_ND: list[torch.Tensor] = []
    model.layers[2].ffn.register_forward_pre_hook(lambda _, args: inputs_ND.append(args[0]))
    with torch.no_grad():
        model(step)
        routing = model.layers[2].ffn.router(inputs_ND[0], step)
    scores_NE = (inputs_ND[0] @ model.layers[2].ffn.router.weight_ED.T).softmax(-1)
    best_NA = scores_NE.topk(3, dim=-1).values
    assert_close(routing.weights_NA, best_NA / best_NA.sum(-1, keepdim=True))


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
