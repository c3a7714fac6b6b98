"""The planner's counts are those of the modules that transformers builds, on the meta device, for every family."""

from dataclasses import replace

import pytest

from sobre.config.load import decode, read_recipe, recipe_names
from sobre.config.recipe import Recipe
from sobre.errors import ConfigError
from sobre.plan.hf import TRAITS, from_hf
from sobre.plan.known import known, model
from sobre.plan.outline import outline

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from sobre.models.decoder import Decoder  # noqa: E402, which needs torch

SMALL = {
    "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 80, "vocab_size": 130,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
CASES = {
    "llama": GROUPED | {"head_dim": 8, "attention_bias": True, "mlp_bias": True},
    "mistral": GROUPED,
    "mixtral": GROUPED | {"num_local_experts": 4},
    "qwen2": GROUPED | {"tie_word_embeddings": True},
    "qwen3": GROUPED | {"head_dim": 20},
    "qwen2_moe": GROUPED | {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                            "shared_expert_intermediate_size": 56, "decoder_sparse_step": 2},
    "qwen3_moe": GROUPED | {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 20,
                            "mlp_only_layers": [1]},
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": GROUPED,
    "olmoe": GROUPED | {"num_experts": 5, "num_experts_per_tok": 2},
    "gemma2": GROUPED | {"head_dim": 20},
    "gemma3_text": GROUPED | {"head_dim": 20},
    "phi3": GROUPED,
    "phimoe": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True,
                         "lm_head_bias": True},
    "smollm3": GROUPED,
    "gpt_oss": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 20,
                          "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gpt_neox": {},
    "gpt2": {"n_embd": 96, "n_layer": 3, "n_head": 6, "n_positions": 64},
    "opt": {"ffn_dim": 80, "word_embed_proj_dim": 96},
    "bloom": {"n_layer": 3, "n_head": 6},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "starcoder2": GROUPED,
}  # fmt: skip


def numbers(config) -> int:
    """Parameters and buffers that are stored, each once."""
    with torch.device("meta"):
        net = transformers.AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in net.parameters())


def test_every_family_that_transformers_has_is_compared():
    assert {*TRAITS} - {"transformer"} == {*CASES}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_a_small_odd_shaped_model_counts_as_the_real_module(kind):
    sizes = SMALL | CASES[kind]
    if kind in ("gpt2", "bloom", "falcon"):  # which spell the inner width their own way, 4 widths by default
        del sizes["intermediate_size"]
    config = transformers.AutoConfig.for_model(kind, **sizes)
    assert from_hf(config.to_dict()).total == numbers(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, c in known().items() if c["model_type"] not in ("transformer", "bloom")])
def test_a_known_model_counts_as_the_real_module(name):
    config = transformers.AutoConfig.for_model(**{"q_lora_rank": None} | known()[name])
    moe_layers = (
        sum(x.count for x in model(name).layers if x.ffn.n_experts) if config.model_type == "deepseek_v3" else 0
    )
    biases = moe_layers * getattr(config, "n_routed_experts", 0)  # a buffer in transformers
    assert model(name).total - biases == numbers(config)


LATENT = {
    "q_lora_rank": 24, "kv_lora_rank": 40, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 24,
    "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 2,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "head_dim": 4,
}  # fmt: skip
STRAY = {"moe_intermediate_size": 24, "n_shared_experts": 1, "first_k_dense_replace": 1, "num_experts_per_tok": 2}
"""Keys of other families, which a family's own module does not read."""
ODD = [
    ("mistral", GROUPED | {"attention_bias": True}),
    ("phi3", GROUPED | {"attention_bias": True}),
    ("qwen2", GROUPED | {"attention_bias": False, "num_experts": 4}),
    ("smollm3", GROUPED | {"mlp_bias": True, "attention_bias": True}),
    ("mixtral", GROUPED | STRAY | {"num_local_experts": 4, "attention_bias": True}),
    ("olmoe", GROUPED | STRAY | {"num_experts": 6, "attention_bias": True}),
    ("gpt_oss", GROUPED | STRAY | {"num_local_experts": 4, "attention_bias": False, "head_dim": 20}),
    ("qwen2_moe", GROUPED | STRAY | {"num_experts": 4, "qkv_bias": False, "shared_expert_intermediate_size": 40}),
    ("qwen3_moe", GROUPED | STRAY | {"num_experts": 4, "attention_bias": True, "decoder_sparse_step": 2}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("falcon", {"parallel_attn": False, "multi_query": False, "bias": True, "ffn_hidden_size": 200}),
    ("opt", {"ffn_dim": 40, "word_embed_proj_dim": 96, "enable_bias": False, "layer_norm_elementwise_affine": False}),
    ("deepseek_v2", LATENT | {"q_lora_rank": None, "scoring_func": "softmax", "norm_topk_prob": False}),
    ("deepseek_v3", LATENT),
    ("glm4_moe", GROUPED | STRAY | {"n_routed_experts": 6, "n_group": 1, "topk_group": 1, "head_dim": 20}),
    ("minimax_m2", GROUPED | {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 20}),
    ("seed_oss", GROUPED | {"head_dim": 20, "attention_bias": True, "attention_out_bias": False}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "own"), ODD)
def test_keys_that_a_family_does_not_read_and_shapes_that_nobody_published_count_as_the_real_module(kind, own):
    sizes = SMALL | own
    if kind in ("falcon", "opt"):  # which spell the inner width their own way
        del sizes["intermediate_size"]
    config = transformers.AutoConfig.for_model(kind, **sizes)
    drawn = from_hf(config.to_dict())
    biased = kind in ("deepseek_v3", "glm4_moe", "minimax_m2")  # a buffer in transformers
    biases = sum(layer.count * layer.ffn.n_experts for layer in drawn.layers) if biased else 0
    assert drawn.total - biases == numbers(config)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_s_own_model_counts_as_the_module_that_it_builds(name):
    read = decode(Recipe, [read_recipe(name)])
    cfg = replace(read.model, vocab_size=read.tokenizer.vocab_size, max_len=read.data.seq_len)
    with torch.device("meta"):
        net = Decoder(cfg)
    stored = [*net.parameters(), *(buffer for key, buffer in net.named_buffers() if key in net.state_dict())]
    drawn = outline(cfg)
    assert drawn.total + drawn.mtp_total == sum(tensor.numel() for tensor in stored)


def test_an_embedding_of_another_width_is_refused():
    with pytest.raises(ConfigError, match="word_embed_proj_dim"):
        from_hf(transformers.AutoConfig.for_model("opt", **SMALL, word_embed_proj_dim=48).to_dict())
