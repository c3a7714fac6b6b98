"""Memory, time and money of a training run: sums by hand, laws that must hold, layouts that must not fit."""

import json
from dataclasses import replace

import jsonschema
import pytest

from sobre.errors import ConfigError
from sobre.plan.chips import chip
from sobre.plan.efficiency import FITTED
from sobre.plan.known import model
from sobre.plan.layout import Layout, held, n_micro_batches, training_memory
from sobre.plan.step import overhead, seconds, work
from sobre.plan.train import train
from sobre.schemas import schema

V3 = model("deepseek-v3")
LLAMA = model("llama-3.1-8b")
AS_PUBLISHED = {"tensor": 1, "pipeline": 16, "expert": 64, "zero": 1, "schedule": "dualpipe", "recompute": "selective"}


def v3_plan(**changes):
    asked = {"tokens": 14.8e12, "chips": 2048, "batch_tokens": 62_914_560, "precision": "fp8", "fixed": AS_PUBLISHED}
    return train(V3, chip("h800"), **asked | changes)


def test_deepseek_v3_costs_what_was_published():
    plan = v3_plan()
    assert plan.gpu_hours == pytest.approx(2_664_000, rel=0.05)
    assert plan.cost_usd == pytest.approx(5.328e6, rel=0.05)
    assert plan.mfu == pytest.approx(0.389, rel=0.05)  # arXiv 2505.09343, table 4, causal
    assert plan.flops_per_token == pytest.approx(250e9, rel=0.005)


def test_sixteen_bytes_a_parameter_on_one_chip_and_what_zero_divides():
    one = training_memory(LLAMA, Layout(), 1024, 1)
    n = LLAMA.total
    assert (one["weights"], one["gradients"], one["optimizer"]) == (2 * n, 4 * n, 12 * n)
    for zero, parts in (
        (1, ("optimizer",)),
        (2, ("optimizer", "gradients")),
        (3, ("optimizer", "gradients", "weights")),
    ):
        split = training_memory(LLAMA, Layout(data=8, zero=zero), 1024, 1)
        for part in ("weights", "gradients", "optimizer"):
            assert split[part] == pytest.approx(one[part] / (8 if part in parts else 1))


def test_a_chip_of_deepseek_v3_holds_both_ends_of_the_pipeline_and_a_64th_of_the_experts():
    layout = Layout(data=128, pipeline=16, expert=64, schedule="dualpipe")
    rest, experts = held(V3, layout)
    mtp = V3.mtp.ffn.n_experts * V3.mtp.ffn.expert
    assert experts == pytest.approx((V3.experts + mtp) / 64 / 8)
    assert rest + experts < V3.total / 100


def test_the_parts_of_a_step_add_up():
    plan = v3_plan()
    assert sum(plan.parts.values()) == pytest.approx(plan.step_s)
    assert sum(plan.memory.values()) < chip("h800").memory_bytes


def test_dollars_hours_and_energy_belong_together():
    plan = v3_plan()
    assert plan.days * 24 * plan.chips == pytest.approx(plan.gpu_hours)
    assert plan.cost_usd == pytest.approx(plan.gpu_hours * 2)
    assert plan.energy_kwh == pytest.approx(plan.gpu_hours * 0.7 * 0.85 * 1.1)


def test_a_cut_link_costs_time_and_never_helps():
    fixed = {"tensor": 8, "pipeline": 1, "zero": 1}
    hours = {
        name: train(model("llama-3.1-70b"), chip(name), tokens=1e12, chips=1024, fixed=fixed).gpu_hours
        for name in ("h100", "h800", "a100-80", "a800")
    }
    assert hours["h800"] > 1.05 * hours["h100"]
    assert hours["a800"] > 1.01 * hours["a100-80"]


def test_more_of_anything_costs_more():
    base = train(LLAMA, chip("h100"), tokens=1e11, chips=64)
    assert train(LLAMA, chip("h100"), tokens=2e11, chips=64).gpu_hours == pytest.approx(2 * base.gpu_hours)
    assert train(LLAMA, chip("h100"), tokens=1e11, chips=64, seq_len=16_384).gpu_hours > base.gpu_hours
    assert train(model("llama-3.1-70b"), chip("h100"), tokens=1e11, chips=64).gpu_hours > base.gpu_hours
    assert train(LLAMA, chip("h100"), tokens=1e11, chips=64, precision="fp8").gpu_hours < base.gpu_hours
    assert train(LLAMA, chip("a100-80"), tokens=1e11, chips=64, precision="fp8").gpu_hours == pytest.approx(
        train(LLAMA, chip("a100-80"), tokens=1e11, chips=64).gpu_hours
    )


def test_recomputing_trades_memory_for_a_third_more_products():
    on, kept = chip("h100"), Layout(data=8)
    again = replace(kept, recompute="full")
    loads = [work(LLAMA, on, x, seq_len=4096, batch_tokens=2**20, precision="bf16") for x in (kept, again)]
    assert loads[1].dense.flops == pytest.approx(loads[0].dense.flops * 4 / 3)
    memory = [training_memory(LLAMA, x, 4096, 4)["activations"] for x in (kept, again)]
    assert memory[1] < memory[0] / 2


def test_the_products_of_a_step_are_its_model_flops():
    load = work(LLAMA, chip("h100"), Layout(data=8), seq_len=4096, batch_tokens=8 * 4096, precision="bf16")
    assert load.dense.flops + load.head.flops == pytest.approx(6 * LLAMA.active * 4096)


def test_no_time_beats_the_data_sheet():
    for name in ("h100", "a100-80", "b200", "rtx4090"):
        on = chip(name)
        load = work(LLAMA, on, Layout(data=8, zero=3), seq_len=4096, batch_tokens=2**20, precision="bf16")
        floor = 2**20 / 8 * LLAMA.flops_per_token(4096) / on.peak("bf16")
        assert sum(seconds(load, on, FITTED).values()) > floor


def test_restarts_grow_with_the_number_of_chips():
    assert overhead(16_384, FITTED) > overhead(2048, FITTED) > overhead(8, FITTED) > 1


@pytest.mark.parametrize(
    ("name", "on", "chips", "fixed", "words"),
    [
        (
            "llama-3.1-405b",
            "h100",
            8,
            {},
            ["memory breaks first", "optimizer", "80", "128 h100, such as"],
        ),
        ("llama-3.1-405b", "rtx4090", 8, {}, ["of it is optimizer", "what would fit: 512 rtx4090, such as", "ZeRO 3"]),
        ("llama-3.1-8b", "rtx4090", 1, {}, ["does not fit", "24"]),
        ("llama-3.1-70b", "h100", 64, {"tensor": 1, "pipeline": 1, "zero": 1}, ["64 h100 divided otherwise", "ZeRO 3"]),
        ("llama-3.1-8b", "h100", 7, {"tensor": 4}, ["4 does not divide 7 chips; 8 would do"]),
        ("llama-3.1-8b", "h100", 8, {"expert": 2}, ["no routed experts"]),
        ("llama-3.1-8b", "h100", 99, {"pipeline": 99}, ["99 stages is longer than the 32 layers"]),
        ("llama-3.1-8b", "h100", 8, {"tensor": 0}, ["tensor=0"]),
        ("llama-3.1-8b", "h100", 8, {"recompute": "some"}, ["no recompute 'some'", "selective"]),
        ("deepseek-v3", "h800", 64, {"expert": 256}, ["expert=256 does not divide the 64 chips"]),
        ("deepseek-v3", "h800", 30, {"pipeline": 15, "schedule": "dualpipe"}, ["even number of stages"]),
    ],
)
def test_what_cannot_be_says_which_limit_breaks_first(name, on, chips, fixed, words):
    with pytest.raises(ConfigError) as error:
        train(model(name), chip(on), tokens=1e12, chips=chips, fixed=fixed)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("wrong", [{"zero": 4}, {"schedule": "gpipe"}, {"data": 0}, {"data": 6, "expert": 4}])
def test_a_layout_that_contradicts_itself_is_refused(wrong):
    with pytest.raises(ConfigError, match="layout"):
        Layout(**wrong)


def test_a_small_model_on_many_chips_gets_a_batch_that_all_of_them_can_share():
    assert train(model("qwen3-4b"), chip("h100"), tokens=1e12, chips=2048).batch_tokens == 2048 * 4096


def test_micro_batches_fill_the_batch():
    assert n_micro_batches(Layout(data=128, pipeline=16), 62_914_560, 4096) == 120


def test_the_document_is_what_its_schema_says():
    document = json.loads(json.dumps(v3_plan().to_dict()))
    jsonschema.validate(document, schema("planning"))
    for key in ("params_total", "flops_per_token", "tokens", "gpu_hours", "days", "cost_usd", "energy_kwh", "mfu"):
        assert document[key] > 0
