"""A step by kind of work: nothing is lost of the plan's seconds, and DeepSeek-V3's is what its schedule says."""

import pytest

from sobre.plan.chips import chip
from sobre.plan.efficiency import FITTED
from sobre.plan.known import model
from sobre.plan.layout import held
from sobre.plan.trace import trace
from sobre.plan.train import train

AS_PUBLISHED = {"tensor": 1, "pipeline": 16, "expert": 64, "schedule": "dualpipe", "recompute": "selective"}


def planned(batch_tokens=62_914_560, **fixed):
    v3, h800 = model("deepseek-v3"), chip("h800")
    return train(v3, h800, tokens=1e12, chips=2048, batch_tokens=batch_tokens, fixed=fixed, must_fit=False)


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb1p", "dualpipe", "dualpipev"])
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_the_parts_of_a_trace_are_the_step(schedule, recompute):
    fixed = {"tensor": 1, "pipeline": 4, "expert": 64, "schedule": schedule, "recompute": recompute}
    plan = planned(batch_tokens=1 << 26, **fixed)
    found = dict(trace(plan).seconds)
    assert found.pop("whole") == plan.step_s == pytest.approx(sum(found.values()))
    assert found["bubble"] > 0
    assert -found["hidden"] <= found["optimizer"]
    assert (found["1F1B"] > 0) == (schedule in ("dualpipe", "dualpipev"))


def test_the_trace_of_deepseek_v3_is_counted_on_its_first_stage():
    plan = planned(**AS_PUBLISHED)
    found = trace(plan).seconds
    # of 120 micro-batches 97 meet another's backward pass; 15 backward passes put their weights off, 8 do not
    assert found["1F"] / found["1F1B"] == pytest.approx(23 / (3 * 97))
    assert found["1B"] / found["1F1B"] == pytest.approx((15 + 2 * 8) / (3 * 97))
    assert found["1W"] / found["1F1B"] == pytest.approx(15 / (3 * 97))


def test_only_the_published_step_stands_beside_a_published_one():
    assert trace(planned(**AS_PUBLISHED)).published["1F1B"] == 13.95
    other = train(model("qwen3-8b"), chip("h100"), tokens=1e9, chips=64)
    assert trace(other).published == {}


def test_the_optimizer_of_deepseek_v3_is_an_exchange_and_an_update():
    """A chip holds 2.18G numbers of which 128 have copies, and 1.30G of experts, of which 2 have, on other machines."""
    plan = planned(**AS_PUBLISHED)
    rest, experts = held(plan.model, plan.layout)
    moved_rest, moved_experts = 4 * rest * 127 / 128, 4 * experts / 2
    one_way = FITTED.link * 1e9 / 2
    exchange_s = moved_rest / (400 * one_way) + (moved_rest / 8 + moved_experts) / (100 * one_way)
    update_s = 28 * (rest / 128 + experts / 2) / 3350e9
    found = trace(plan).seconds
    assert found["optimizer"] == pytest.approx(exchange_s + update_s)
    assert found["hidden"] == pytest.approx(-exchange_s)
    assert 0.1 < found["optimizer"] < 0.29


def test_what_cannot_hide_behind_the_work_is_not_called_hidden():
    """ZeRO 3 moves all weights for every micro-batch, and half of the time of the work hides a part of that."""
    fixed = {"zero": 3, "tensor": 1, "pipeline": 1}
    small, h100 = model("qwen3-8b"), chip("h100")
    plan = train(small, h100, tokens=1e9, chips=64, batch_tokens=64 * 4096, fixed=fixed)
    found = trace(plan).seconds
    assert plan.parts["data"] > 0
    assert -found["hidden"] > 0
    assert found["optimizer"] + found["hidden"] == pytest.approx(plan.parts["optimizer"] + plan.parts["data"])
