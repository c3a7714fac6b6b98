"""Counts without torch equal published figures and the modules' own."""

import dataclasses

import pytest

from sobre.models.config import DenseConfig, GQAConfig, MemoryConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.plan.count import (
    cache_bytes_per_token,
    decode_flops,
    flops_per_token,
    forward_flops,
    generate_flops,
    params,
    shapes,
    train_flops,
)
from sobre.plan.outline import outline

DEEPSEEK_V3 = ModelConfig(
    vocab_size=129_280,
    d_model=7168,
    n_layers=61,
    attention=MLAConfig(n_heads=128, q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, v_dim=128),
    ffn=MoEConfig(
        n_experts=256,
        n_active=8,
        d_expert=2048,
        n_shared=1,
        n_groups=8,
        n_active_groups=4,
        route_scale=2.5,
        n_dense_layers=3,
        d_ff=18_432,
    ),
    max_len=4096,
    n_mtp=1,
)
SMALL = {
    "mla": ModelConfig(vocab_size=96, d_model=32, n_layers=3, max_len=32, attention=MLAConfig(q_rank=24), n_mtp=1),
    "mla, direct query, tied": ModelConfig(vocab_size=96, d_model=32, n_layers=2, max_len=32, tied=True),
    "no shared expert": ModelConfig(vocab_size=96, d_model=32, n_layers=2, max_len=32, ffn=MoEConfig(n_shared=0)),
    "dense gqa": ModelConfig(
        vocab_size=96, d_model=32, n_layers=2, max_len=32, attention=GQAConfig(qk_norm=True), ffn=DenseConfig()
    ),
    "gqa with biases, dense mtp": ModelConfig(
        vocab_size=96,
        d_model=32,
        n_layers=2,
        max_len=32,
        attention=GQAConfig(qkv_bias=True),
        ffn=DenseConfig(),
        n_mtp=1,
    ),
    "memory": ModelConfig(
        vocab_size=96, d_model=32, n_layers=2, max_len=32, memory=MemoryConfig(layers=(1,), n_rows=1000, dim=8)
    ),
}


def test_deepseek_v3_has_its_671_026_419_200_parameters_without_mtp():
    count = params(DEEPSEEK_V3)
    assert count.total == 671_026_419_200
    assert count.by_part["router"] == 58 * (256 * 7168 + 256)
    assert count.by_part["embed"] == count.by_part["head"] == 129_280 * 7168
    assert sum(count.by_part.values()) == count.total


def test_deepseek_v3_activates_36_6_billion_and_its_mtp_module_stores_11_6():
    count = params(DEEPSEEK_V3)
    assert count.active / 1e9 == pytest.approx(36.63, abs=0.01)
    assert (count.active - count.by_part["head"]) / 1e9 == pytest.approx(35.699, abs=0.002)
    assert count.mtp / 1e9 == pytest.approx(11.61, abs=0.005)


def test_deepseek_v3_costs_250_gflop_per_trained_token_at_4k_and_70_kb_of_cache():
    main_model = dataclasses.replace(DEEPSEEK_V3, n_mtp=0)
    assert flops_per_token(main_model, 4096).train / 1e9 == pytest.approx(250.5, abs=0.1)
    assert cache_bytes_per_token(main_model) == 70_272
    mtp = flops_per_token(DEEPSEEK_V3, 4096).train - flops_per_token(main_model, 4096).train
    assert mtp / 1e9 == pytest.approx(9.7 + 0.5, abs=0.1)


@pytest.mark.parametrize("name", SMALL)
def test_names_and_shapes_are_the_module_s_own(name):
    torch = pytest.importorskip("torch")
    decoder = pytest.importorskip("sobre.models.decoder")
    with torch.device("meta"):
        model = decoder.Decoder(SMALL[name])
    stored = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes(SMALL[name]) == stored
    count = params(SMALL[name])
    main = sum(value.numel() for key, value in model.state_dict().items() if not key.startswith("mtp."))
    assert count.total == main
    assert count.mtp == sum(value.numel() for key, value in model.state_dict().items() if key.startswith("mtp."))


def test_tables_cost_parameters_and_cache_but_only_key_and_value_cost_flops():
    memory = SMALL["memory"]
    plain = dataclasses.replace(memory, memory=MemoryConfig())
    larger = dataclasses.replace(memory, memory=dataclasses.replace(memory.memory, n_rows=9000))
    products = 2 * 32 * 4 * 8  # key and value, each from 4 rows of 8 to width 32
    assert params(memory).by_part["memory"] == 96 + 4 * 1000 * 8 + products + 4 * 32 + 3 * 32
    assert params(larger).total - params(memory).total == 4 * 8000 * 8
    assert params(larger).active == params(memory).active == params(plain).active + products
    assert flops_per_token(larger, 16).train - flops_per_token(plain, 16).train == 6 * products
    assert cache_bytes_per_token(memory, 4) - cache_bytes_per_token(plain, 4) == 32 * 4 + 8
    drawn = outline(memory)
    assert (drawn.total, drawn.active) == (params(memory).total, params(memory).active)
    assert drawn.by_part()["memory"] == params(memory).by_part["memory"]


@pytest.mark.parametrize("attention", [MLAConfig(q_rank=24), MLAConfig(), GQAConfig()])
def test_matrix_flops_of_a_dense_model_are_what_torch_counts(attention):
    torch = pytest.importorskip("torch")
    decoder = pytest.importorskip("sobre.models.decoder")
    from torch.utils.flop_counter import FlopCounterMode

    from sobre.models.step import StepInput

    cfg = ModelConfig(vocab_size=96, d_model=32, n_layers=2, max_len=32, attention=attention, ffn=DenseConfig())
    model = decoder.Decoder(cfg).eval()
    model.init_weights(0)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.logits(model(StepInput(torch.arange(24), lengths=(24,))).hidden_ND)
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    assert counted["aten.mm"] == 2 * params(cfg).active * 24


def test_a_token_that_waits_for_its_context_pays_for_every_earlier_one():
    cfg = SMALL["dense gqa"]
    whole = forward_flops(cfg, [10])
    in_parts = forward_flops(cfg, [6]) + forward_flops(cfg, [4], starts=[6])
    one_by_one = sum(decode_flops(cfg, [context]) for context in range(1, 11))
    assert whole == pytest.approx(in_parts) == pytest.approx(one_by_one)


def test_ragged_lengths_add_up_and_cost_less_than_one_long_sequence():
    cfg = SMALL["mla"]
    assert forward_flops(cfg, [3, 7]) == forward_flops(cfg, [3]) + forward_flops(cfg, [7])
    assert forward_flops(cfg, [3, 7]) < forward_flops(cfg, [10])
    assert train_flops(cfg, [3, 7]) == pytest.approx(train_flops(cfg, [3]) + train_flops(cfg, [7]))


def test_training_is_three_forward_passes_and_mtp_is_extra():
    cfg = SMALL["mla"]
    main = dataclasses.replace(cfg, n_mtp=0)
    assert train_flops(main, [9]) == 3 * forward_flops(main, [9])
    assert train_flops(cfg, [9]) > train_flops(main, [9])


def test_only_tokens_with_logits_pay_for_the_head():
    cfg = SMALL["dense gqa"]
    head = 2 * cfg.vocab_size * cfg.d_model
    assert forward_flops(cfg, [8]) - forward_flops(cfg, [8], n_logits=1) == 7 * head
    assert train_flops(cfg, [8]) - train_flops(cfg, [8], n_logits=5) == 3 * 3 * head


def test_absorbed_decoding_attends_to_the_latent():
    cfg = SMALL["mla"]
    attn = cfg.attention
    one_more_key = decode_flops(cfg, [11]) - decode_flops(cfg, [10])
    assert one_more_key == 2 * cfg.n_layers * attn.n_heads * (2 * attn.kv_rank + attn.rope_dim)


def test_a_piece_of_a_prompt_costs_what_the_cheaper_form_of_latent_attention_multiplies():
    cfg = SMALL["mla"]
    attn, fresh = cfg.attention, forward_flops(cfg, [9])
    per_pair = 2 * cfg.n_layers * attn.n_heads
    widening = per_pair * 50 * attn.kv_rank * (attn.nope_dim + attn.v_dim)
    for new in (1, 9, 200):
        pairs, alone = new * 50, forward_flops(cfg, [new])
        own = new * (new + 1) // 2
        widened = alone + per_pair * pairs * (attn.qk_dim + attn.v_dim) + widening
        absorbed = alone + per_pair * (
            (pairs + own) * (attn.latent_dim + attn.kv_rank) - own * (attn.qk_dim + attn.v_dim)
        )
        assert forward_flops(cfg, [new], starts=[50]) == pytest.approx(min(widened, absorbed))
    assert fresh < forward_flops(cfg, [9], starts=[50])


def test_generation_is_a_prefill_and_one_decode_step_less_than_tokens():
    cfg = SMALL["mla"]
    assert generate_flops(cfg, 5, 1) == forward_flops(cfg, [5], n_logits=1)
    assert generate_flops(cfg, 5, 3) == pytest.approx(generate_flops(cfg, 5, 1) + decode_flops(cfg, [6, 7]))
    assert generate_flops(cfg, 5, 0) == 0.0
