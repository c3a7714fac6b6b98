"""The planner's counts are those of the modules that transformers builds, on the meta device, for every family."""

import pytest

from sobre.plan.hf import TRAITS, from_hf
from sobre.plan.known import known, model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

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
