"""A step by kind of work: nothing is lost of the plan's seconds, and DeepSeek-V3's is what its schedule says."""

import pytest

from sobre.plan.chips import chip
from sobre.plan.known import model
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
