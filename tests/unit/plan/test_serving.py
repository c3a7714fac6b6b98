"""Serving and reinforcement learning on paper: published checks, bounds of the data sheet, and what does not fit."""

import json
from dataclasses import replace

import jsonschema
import pytest

from sobre.errors import ConfigError
from sobre.plan.chips import chip
from sobre.plan.efficiency import FITTED
from sobre.plan.known import model
from sobre.plan.layout import Layout
from sobre.plan.reasoning import rollout_seconds
from sobre.plan.serving import serve
from sobre.plan.step import Products, seconds, work
from sobre.schemas import schema

V3, H800 = model("deepseek-v3"), chip("h800")


def test_a_decoding_node_of_deepseek_makes_about_its_published_14_800_tokens_a_second():
    """Expert parallel over 144 chips, 4,989 tokens held on average, 88 users a chip (20 to 22 tokens/s each)."""
    unit = serve(V3, H800, chips=144, users=88 * 144, context=4989, weights="fp8")
    assert unit.decode_per_chip * 8 == pytest.approx(14_800, rel=0.15)
    assert unit.tokens_per_s_per_user == pytest.approx(21, rel=0.15)


def test_a_prefill_node_makes_about_its_published_73_700_tokens_a_second():
    """56.3 % of them from the cache; requests of one length would make a fifth more, which is the ceiling."""
    asked = {"chips": 32, "users": 32, "context": 4989, "hits": 0.563, "weights": "fp8"}
    unit, alike = serve(V3, H800, **asked), serve(V3, H800, **asked, variety=0.0)
    assert unit.prefill_per_chip * 8 == pytest.approx(73_700, rel=0.15)
    assert 1.0 < alike.prefill_per_chip * 8 / 73_700 < 1.25


def test_a_prefill_is_the_forward_pass_of_a_training_step():
    """One chip, no cache, requests of one length: the products, the attention and the bytes of a step, once each."""
    small, on = model("llama-3.1-8b"), chip("h100")
    load = work(small, on, Layout(micro_batch=16), seq_len=1024, batch_tokens=16_384, precision="bf16")
    parts = seconds(load, on, FITTED)
    head = 2 * small.vocab_size * small.d_model / (on.peak("bf16") * FITTED.matrix)
    matrices = (parts["matrices"] - seconds(replace(load, dense=Products()), on, FITTED)["matrices"]) / 3
    forward = matrices + parts["attention"] / 3.5 + parts["elementwise"] / 3
    alone = serve(small, on, context=1024, variety=0.0)
    assert alone.prefill_s == pytest.approx(forward / 16_384, rel=1e-3)
    assert alone.prefill_s * 16_384 > head


def test_a_cached_latent_is_projected_again_and_a_cached_key_is_not():
    latent, grouped = V3, model("llama-3.1-8b")
    at = {"context": 100_000, "variety": 0.0}
    for drawn, units, chips in ((latent, H800, 32), (grouped, chip("h100"), 1)):
        # seen keys are made equal: a cached half doubles what a computed token sees less its own
        none = serve(drawn, units, chips=chips, hits=0.0, weights="fp8", **at)
        half = serve(drawn, units, chips=chips, hits=0.5, weights="fp8", context=66_666, variety=0.0)
        ratio = half.prefill_s / none.prefill_s
        assert ratio > 1.003 if drawn is latent else ratio == pytest.approx(1, rel=1e-3)


def test_unequal_requests_cost_more_where_keys_are_what_costs():
    costs = [serve(V3, H800, chips=32, context=8192, weights="fp8", variety=v).prefill_s for v in (0.0, 0.5, 1.0, 2.0)]
    assert costs == sorted(costs)
    attention = [cost - costs[0] for cost in costs]
    assert attention[3] / attention[2] == pytest.approx(4)  # by the square
    with pytest.raises(ConfigError, match="variety"):
        serve(V3, H800, variety=-1.0)


def test_no_step_is_faster_than_the_weights_can_be_read():
    small = model("llama-3.1-8b")
    unit = serve(small, chip("h100"), context=128)
    assert unit.decode_s > 2 * small.active / chip("h100").bytes_per_s
    assert unit.prefill_s > 2 * (small.active - small.head) / chip("h100").peak("bf16")


def test_users_share_the_reading_of_weights_and_pay_for_their_caches():
    small = model("llama-3.1-8b")
    one, many = (serve(small, chip("h200"), chips=1, users=n, context=4096) for n in (1, 32))
    assert many.decode_per_chip > 10 * one.decode_per_chip
    assert many.decode_s > one.decode_s
    assert many.memory["cache"] == 32 * one.memory["cache"] == 32 * 4096 * small.cache_bytes_per_token()


def test_a_cached_token_costs_less_than_a_computed_one_and_that_less_than_an_output_one():
    unit = serve(model("qwen3-32b"), chip("h100"), users=8, context=8192)
    assert unit.price("cached") < unit.price("input") < unit.price("output")


def test_the_fewest_chips_that_hold_the_model_are_taken():
    assert serve(model("llama-3.1-70b"), chip("h100"), weights="bf16").chips == 2
    assert serve(model("llama-3.1-70b"), chip("h100"), weights="fp4").chips == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chips": 1}, ["does not fit", "weights", "what would fit: 2 h100"]),
        ({"chips": -1}, ["chips=-1"]),
        ({"chips": 4, "users": 4000, "context": 32_768}, ["cache", "users at this context"]),
        ({"users": 0}, ["users=0"]),
        ({"hits": 1.0}, ["hits=1.0"]),
        ({"weights": "fp7"}, ["no format"]),
    ],
)
def test_what_does_not_fit_says_what_would(changes, words):
    with pytest.raises(ConfigError) as error:
        serve(model("llama-3.1-70b"), chip("h100"), **changes)
    assert all(word in str(error.value) for word in words)


def test_a_chip_without_a_rent_has_no_price():
    unit = serve(model("qwen3-8b"), chip("m4-max"))
    assert unit.price("output") is None


def test_a_rollout_lasts_as_long_as_its_longest_answer():
    short, long = (
        rollout_seconds(V3, H800, chips=512, samples=8192, mean_tokens=8000, max_tokens=m, weights="fp8")
        for m in (32_768, 65_536)
    )
    assert 1.2 < long / short < 2.0


def test_the_document_is_what_its_schema_says():
    for unit in (serve(V3, H800, weights="fp8"), serve(model("qwen3-8b"), chip("m4-max"))):
        jsonschema.validate(json.loads(json.dumps(unit.to_dict())), schema("planning"))


def test_the_published_day_of_service_keeps_about_its_published_nodes_busy():
    """608B tokens in, 168B out, 226.75 nodes of 8 on average, $87,072 at $2 an hour; the margin was 545 %."""
    unit = serve(V3, H800, chips=144, users=88 * 144, context=4989, hits=0.563, weights="fp8")
    nodes = unit.chips_for(608e9, 168e9) / 8
    assert nodes == pytest.approx(226.75, rel=0.2)
    assert nodes * 8 * 24 * 2 == pytest.approx(87_072, rel=0.2)
    assert 562_027 / (nodes * 8 * 24 * 2) - 1 == pytest.approx(5.45, rel=0.25)


def test_break_even_is_the_load_at_which_prices_meet():
    unit = serve(V3, H800, chips=144, users=88 * 144, context=4989, weights="fp8")
    [listed] = unit.break_even()
    assert listed["load"] * listed["usd_per_million_output"] == pytest.approx(unit.price("output"))
    assert serve(model("qwen3-8b"), chip("h100")).break_even() == []
