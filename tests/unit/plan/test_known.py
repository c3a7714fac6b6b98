"""Known models have their published sizes; unknown ones and broken files are named."""

import json
import random
from pathlib import Path

import pytest

from sobre.config.load import to_json
from sobre.errors import ConfigError
from sobre.models.config import (
    DenseConfig,
    GQAConfig,
    IndexerConfig,
    LightningConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
)
from sobre.plan import count
from sobre.plan.known import known, model
from sobre.plan.outline import outline

EXACT = {
    "deepseek-v3": 671_026_419_200,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v2-lite": 15_706_484_224,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-65b": 65_285_660_672,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "smollm-135m": 134_515_008,
    "tinyllama-1.1b": 1_100_048_384,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-12b": 11_846_072_320,
    "bloom-176b": 176_247_271_424,
    "olmoe-1b-7b": 6_919_161_856,
    "gemma-2-9b": 9_241_705_984,
    "phi-3.5-moe": 41_873_153_344,
}
"""Parameters as the released files hold them."""
ROUNDED = {
    "kimi-k2": 1.03e12,
    "palm-540b": 540e9, "gopher-280b": 280e9, "gpt-3-175b": 175e9,
    "opt-175b": 175e9, "bloomberg-50b": 50.6e9, "glm-130b": 130e9, "falcon-180b": 179.5e9, "llama-4-scout": 108e9,
    "llama-4-maverick": 400e9, "qwen3-235b-a22b": 235e9, "mixtral-8x22b": 141e9, "olmo-2-32b": 32.2e9,
    "apertus-70b": 70.6e9, "nanochat-d20": 561e6,
}  # fmt: skip
"""As papers round them."""
FLOPS = {"deepseek-v3": (4096, 250e9), "deepseek-v2": (4096, 155e9), "llama-3.1-405b": (4096, 2448e9)}
"""Training FLOPs per token, attention causal (arXiv 2505.09343, table 2)."""


@pytest.mark.parametrize("name", EXACT)
def test_a_known_model_has_its_published_number_of_parameters(name):
    assert model(name).total == EXACT[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_a_known_model_has_its_rounded_size(name):
    assert model(name).total == pytest.approx(ROUNDED[name], rel=0.01)


@pytest.mark.parametrize("name", FLOPS)
def test_training_flops_per_token_are_the_published_ones(name):
    length, flops = FLOPS[name]
    assert model(name).flops_per_token(length) == pytest.approx(flops, rel=0.015)


def test_caches_are_the_published_ones():
    sizes = {name: model(name).cache_bytes_per_token() for name in ("deepseek-v3", "qwen2.5-72b", "llama-3.1-405b")}
    assert sizes == {"deepseek-v3": 70_272, "qwen2.5-72b": 327_680, "llama-3.1-405b": 516_096}


def test_a_sliding_window_bounds_pairs_and_cache():
    layers = model("gpt-oss-20b").layers
    window = next(layer.attention for layer in layers if layer.attention.reach)
    full = next(layer.attention for layer in layers if not layer.attention.reach)
    assert window.pairs(1000) == sum(min(i + 1, 128) for i in range(1000))
    assert full.pairs(1000) == 1000 * 1001 / 2
    assert window.held(1000) == 128 * window.cache
    assert full.held(1000) == 1000 * full.cache


@pytest.mark.parametrize(
    "cfg",
    [
        ModelConfig(vocab_size=96, d_model=32, n_layers=3, max_len=32, attention=MLAConfig(q_rank=24), n_mtp=1),
        ModelConfig(vocab_size=96, d_model=32, n_layers=2, max_len=32, ffn=MoEConfig(n_shared=0), tied=True),
        ModelConfig(vocab_size=96, d_model=32, n_layers=2, attention=GQAConfig(qk_norm=True), ffn=DenseConfig()),
    ],
)
def test_an_outline_counts_as_the_model_itself_is_counted(cfg):
    drawn, counted = outline(cfg), count.params(cfg)
    assert (drawn.total, drawn.active, drawn.mtp_total) == (counted.total, counted.active, counted.mtp)
    assert drawn.forward_flops(17) == count.forward_flops(cfg, [17])
    assert drawn.train_flops(17) == pytest.approx(count.train_flops(cfg, [17]))
    assert drawn.decode_flops(23) == count.decode_flops(cfg, [23])
    assert drawn.cache_bytes_per_token() == count.cache_bytes_per_token(cfg)
    assert sum(drawn.by_part().values()) == drawn.total


def test_sparse_and_linear_attention_are_outlined():
    """A query of DeepSeek-V3.2 sees chosen keys, its indexer all of them; lightning layers keep a state, no keys."""
    sparse = MLAConfig(q_rank=24, indexer=IndexerConfig(n_heads=2, dim=16, n_keys=8))
    [layer] = outline(ModelConfig(vocab_size=96, d_model=32, n_layers=1, attention=sparse, ffn=DenseConfig())).layers
    assert layer.attention.pairs(20) == sum(min(i + 1, 8) for i in range(20))
    assert layer.attention.token_flops(100) == 8 * layer.attention.pair_cached + 100 * 2 * 2 * 16
    mixed = ModelConfig(
        vocab_size=96, d_model=32, n_layers=4, attention=LightningConfig(full_layers=(3,)), ffn=DenseConfig()
    )
    drawn = outline(mixed)
    assert drawn.total == count.params(mixed).total
    assert drawn.forward_flops(17) == pytest.approx(count.forward_flops(mixed, [17]))
    grouped = next(layer.attention for layer in drawn.layers if layer.attention.kind == "full")
    assert drawn.cache_numbers(1000) - drawn.cache_numbers(999) == grouped.cache


def test_an_unknown_model_lists_the_near_ones():
    with pytest.raises(ConfigError, match="deepseek-v3"):
        model("deepsek-v3")


def test_a_config_is_read_from_its_file_ours_or_theirs(tmp_path: Path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.json").write_text(json.dumps(known()["qwen3-0.6b"]))
    assert model(str(theirs)).total == model(str(theirs / "config.json")).total == EXACT["qwen3-0.6b"]
    cfg = ModelConfig(vocab_size=96, d_model=32, n_layers=3, max_len=32)
    (tmp_path / "ours.json").write_text(to_json(cfg))
    assert model(str(tmp_path / "ours.json")).total == count.params(cfg).total


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"model_type": "quen3"}, "perhaps qwen3"),
        ({"model_type": "llama", "hidden_size": 64}, "num_hidden_layers"),
        ({"model_type": ["llama"]}, "model_type=.* must be text"),
        ({"model_type": "qwen3", "hidden_size": 64.0}, "hidden_size=64.0 must be a whole number above 0"),
        ({"model_type": "qwen3", "layer_types": 7}, "layer_types=7 must be a list of words"),
        ({"model_type": "qwen3", "num_hidden_layers": 3, "layer_types": ["full_attention"]}, "1 entries for 3 layers"),
        ({"model_type": "qwen3", "tie_word_embeddings": "false"}, "must be true or false"),
        ({"model_type": "qwen3", "num_hidden_layers": 10**9}, "whole number from 1 to 10,000"),
        ({"model_type": "deepseek_v3", "rope_scaling": {"type": "yarn", "factor": "40"}}, "factor='40'"),
        ({"model_type": "gemma3", "text_config": {"hidden_size": "a"}}, "text_config: hidden_size"),
        ({"model_type": "llama", "hidden_size": -1, "num_hidden_layers": 2, "vocab_size": 9}, "hidden_size=-1"),
        ({"model_type": "deepseek_v3", "hidden_size": 64}, "needs the key"),
        ({"nothing": 1}, "neither"),
        ([1], "a config.json is an object"),
    ],
)
def test_a_file_that_is_no_model_says_what_is_missing(tmp_path: Path, tree, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=message):
        model(str(path))


@pytest.mark.slow
def test_a_config_with_wrong_values_is_counted_or_refused_by_name(tmp_path: Path):
    """Known models with one or two keys replaced, removed or added, at random: no fault ends in a traceback."""
    rng, path = random.Random(0), tmp_path / "config.json"
    wrong = [None, 0, -1, 1.5, "a", [], {}, True, 10**30, float("nan"), [1, 2], ["full_attention"], {"a": 1}]
    often = [
        "layer_types",
        "rope_scaling",
        "sliding_window",
        "mlp_only_layers",
        "n_group",
        "q_lora_rank",
        "text_config",
    ]
    refused = 0
    for _ in range(250):
        tree = dict(rng.choice(list(known().values())))
        for key in rng.choices([*tree, *often], k=2):
            tree[key] = rng.choice(wrong)
        path.write_text(json.dumps(tree))
        try:
            found = model(str(path))
        except ConfigError as error:
            refused += str(error).startswith(str(path))
        else:
            assert type(found.total) is int
            assert found.active > 0
    assert refused > 100
