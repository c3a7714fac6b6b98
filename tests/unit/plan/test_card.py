"""One device: what it holds while a stage learns and samples on it, and what is given up for room, cheapest first."""

from dataclasses import replace
from math import inf

import pytest

from sobre.errors import ConfigError
from sobre.kernels import loss
from sobre.models.config import DenseConfig, GQAConfig, ModelConfig
from sobre.plan.card import LOGITS_BYTES, Load, Sampler, cache_tokens, on_one_card, parts, settle
from sobre.plan.chips import chip
from sobre.plan.known import shape
from sobre.plan.layout import OPTIMIZER, RUNTIME_BYTES, Layout, training_memory
from sobre.plan.outline import outline

MODEL = outline(
    ModelConfig(
        vocab_size=32_000,
        max_len=2048,
        d_model=512,
        n_layers=8,
        attention=GQAConfig(n_heads=8, n_kv_heads=8, head_dim=64),
        ffn=DenseConfig(d_ff=2048),
    )
)
LOAD = Load(model=MODEL, tokens=16_384, sampler=Sampler(copy_bytes=2.0 * MODEL.total, cache_bytes=4e9, at_once=128))


def whole(load: Load, **how: bool) -> float:
    return sum(parts(load, **how).values())


def test_a_stage_that_only_learns_holds_what_the_layout_s_training_does():
    load = replace(LOAD, sampler=None)
    plain = training_memory(MODEL, Layout(zero=0), 16_384, 1)
    found = parts(load, recompute=False, offload=False)
    assert "other models" not in found
    logits = min(8192 * 32_000 * 6.0, LOGITS_BYTES)
    assert found["buffers"] == pytest.approx(logits + RUNTIME_BYTES)
    assert {name: found[name] for name in ("weights", "gradients", "optimizer", "activations")} == {
        name: plain[name] for name in ("weights", "gradients", "optimizer", "activations")
    }


def test_the_logits_counted_are_what_the_loss_holds_at_most():
    assert loss.WIDE_SAVE_BYTES + 2 * loss.WIDE_CHUNK_BYTES == LOGITS_BYTES
    wide = replace(LOAD, model=replace(MODEL, vocab_size=151_936), sampler=None)
    assert parts(wide, recompute=False, offload=False)["buffers"] == RUNTIME_BYTES + LOGITS_BYTES


def test_what_gives_way_is_the_cheapest_that_fits():
    ways = [(False, False), (False, True), (True, False), (True, True)]
    sizes = [whole(LOAD, recompute=again, offload=turns) for again, turns in ways]
    for size in sizes:
        memory = size / 0.97 + 1
        first = next(j for j, other in enumerate(sizes) if other <= memory * 0.97)
        found = settle(LOAD, memory)
        assert (found.recompute, found.offload) == ways[first]
        assert found.fits
        assert found.planned == sizes[first]
    assert settle(LOAD, inf).reason.startswith("nothing is given up for room")
    tight = settle(LOAD, 0.5 * min(sizes))
    assert not tight.fits
    assert tight.planned == min(sizes)
    assert "may not hold it" in tight.reason


def test_a_wish_is_kept_though_it_does_not_fit():
    assert not settle(LOAD, 1e6, recompute=False, offload=False).recompute
    assert not settle(LOAD, 1e6, recompute=False).recompute
    assert settle(LOAD, inf, recompute=True).recompute
    assert settle(LOAD, inf, offload=True).offload
    assert "as asked" in settle(LOAD, inf, offload=True).reason
    assert not settle(replace(LOAD, sampler=None), 1e6).offload


def test_turns_keep_the_cache_from_the_learner_and_the_moments_from_the_sampler():
    large = replace(LOAD, sampler=Sampler(copy_bytes=1e9, cache_bytes=1e12))
    sampling = parts(large, recompute=False, offload=True)
    assert sampling["cache"] == 1e12
    assert sampling["masters"] == pytest.approx(4.0 * MODEL.total)
    assert "gradients" not in sampling
    small = parts(replace(LOAD, sampler=Sampler(copy_bytes=1e9, cache_bytes=1.0)), recompute=False, offload=True)
    assert "cache" not in small
    assert small["optimizer"] == OPTIMIZER * MODEL.total


def test_frozen_weights_have_neither_gradient_nor_moments():
    load = replace(LOAD, sampler=None, adapters=10_000, frozen_bytes=2.0 * MODEL.total)
    found = parts(load, recompute=False, offload=False)
    assert found["weights"] == 2.0 * MODEL.total + 2.0 * 10_000
    assert found["gradients"] + found["optimizer"] == 16.0 * 10_000
    wide = parts(replace(load, precision="fp32", frozen_bytes=4.0 * MODEL.total), recompute=False, offload=False)
    assert wide["weights"] + wide["gradients"] + wide["optimizer"] == 4.0 * MODEL.total + 16.0 * 10_000


def test_in_fp32_the_weights_are_what_learns():
    load = replace(LOAD, precision="fp32", sampler=Sampler(copy_bytes=0.0, cache_bytes=1e12))
    assert parts(load, recompute=False, offload=True)["masters"] == 4.0 * MODEL.total


QWEN, CARD = shape("qwen3-0.6b")[0], chip("rtx4090")
AS_RUN = {"at_once": 128, "longest": 1024, "micro_tokens": 16_384}


@pytest.mark.parametrize(("lora_rank", "turns"), [(0, True), (16, False)])
def test_grpo_in_the_shape_of_qwen3_0_6b_fits_24_gb_by_the_plan(lora_rank, turns):
    found = on_one_card(QWEN, "qwen3-0.6b", CARD, **AS_RUN, lora_rank=lora_rank)
    assert CARD.memory_gb == 24
    assert found.settled.planned < 0.97 * 24e9
    assert (found.settled.recompute, found.settled.offload) == (True, turns)
    assert found.load.model.total == 596_049_920
    assert found.load.sampler.cache_bytes == 128 * 1024 * 28 * 2 * 8 * 128 * 2  # keys and values of 8 heads, 16 bits
    learning = found.load.adapters or found.load.model.total
    assert learning == (10_092_544 if lora_rank else 596_049_920)
    assert found.load.sampler.copy_bytes == 2 * learning


def test_what_does_not_fit_a_card_says_what_might():
    with pytest.raises(ConfigError, match=r"most of it is cache .*fewer answers at once"):
        on_one_card(QWEN, "qwen3-0.6b", CARD, **AS_RUN | {"longest": 4096})
    with pytest.raises(ConfigError, match=r"reads at most 40,960"):
        on_one_card(QWEN, "qwen3-0.6b", CARD, **AS_RUN | {"longest": 50_000})
    with pytest.raises(ConfigError, match="does not fit"):
        on_one_card(QWEN, "qwen3-0.6b", CARD, **AS_RUN, recompute=False)
    plain = on_one_card(QWEN, "qwen3-0.6b", chip("h100"), **AS_RUN)
    kl = on_one_card(QWEN, "qwen3-0.6b", chip("h100"), **AS_RUN, reference=True)
    assert kl.settled.planned - plain.settled.planned == pytest.approx(4.0 * 596_049_920)


def test_a_cache_holds_what_is_asked_at_once_and_one_whole_context():
    assert cache_tokens(128, 100, 1024) == 128 * 112
    assert cache_tokens(2, 100, 1000) == 1008
