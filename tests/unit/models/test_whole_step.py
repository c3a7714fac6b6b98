"""A decode step whose parts run in one call each in C is the step of the parts (kernels/native/whole.py)."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from sobre.kernels import select
from sobre.kernels.native import build as native
from sobre.kernels.native import whole
from sobre.models.adapt import adapt
from sobre.models.cache import BlockTables, Int8Cache, PagedCache
from sobre.models.config import LoraConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.models.quantised import quantised
from sobre.models.step import StepInput

from .conftest import build

pytestmark = pytest.mark.skipif(native.lacks() is not None, reason=str(native.lacks()))
no_bytes = native.lacks_bfloat16_products()
in_bytes = pytest.mark.skipif(no_bytes is not None, reason=str(no_bytes))

CFG = ModelConfig(
    vocab_size=64,
    max_len=64,
    d_model=64,
    n_layers=2,
    attention=MLAConfig(n_heads=4, q_rank=32, kv_rank=32, nope_dim=8, rope_dim=16, v_dim=16),
    ffn=MoEConfig(n_experts=8, n_active=3, d_expert=32, n_shared=2, n_dense_layers=1, d_ff=96, route_scale=2.5),
)
SOFTMAX = replace(
    CFG,
    attention=MLAConfig(n_heads=4, kv_rank=32, nope_dim=8, rope_dim=4, v_dim=8),
    ffn=replace(CFG.ffn, score="softmax", biased=False, bias_speed=0.0, norm_weights=False, n_shared=0),
)
LENGTHS = (5, 17, 1)


def cache_of(cfg, dtype=torch.float32, kind=PagedCache):
    tables = BlockTables(3, 32, "cpu")
    for slot, blocks in enumerate(((3, 1), (5, 0), (2, 4))):
        tables.place(slot, blocks)
    return kind(cfg, tables, 6, dtype)


def decoded(model, *, parts, cache=None, called=None):
    """Hidden states, routes and the cache's entries of a decode step after three prompts."""
    tokens_N = torch.arange(sum(LENGTHS)) * 7 % 64
    cache = cache_of(model.cfg, model.dtype) if cache is None else cache
    in_parts = dict.fromkeys(select.WHOLE, "parts")
    with torch.no_grad(), select.overrides(in_parts):
        model(StepInput(tokens_N, LENGTHS, slots=(0, 1, 2)), cache)
    if called is not None:
        called.clear()
    with torch.no_grad(), select.overrides(in_parts if parts else {}):
        output = model(StepInput(torch.tensor([1, 2, 3]), (1, 1, 1), LENGTHS, slots=(0, 1, 2)), cache)
    return output.hidden_ND.float(), output.routes, cache.layers["entries"].float()


@pytest.fixture
def called(monkeypatch):
    """The functions of whole.py's pages that were called."""
    names = []
    monkeypatch.setattr(whole, "call", lambda name, *given: (names.append(name), native.call(name, *given))[1])
    return names


@pytest.mark.parametrize("cfg", [CFG, SOFTMAX])
def test_a_step_in_one_call_each_is_the_step_of_its_parts(cfg, called):
    model = build(cfg)
    hidden_ND, routes, entries = decoded(model, parts=False, called=called)
    assert called == ["latent_step", "gated", "latent_step", "routed"]
    expected_ND, expected_routes, expected = decoded(model, parts=True)
    assert_close(hidden_ND, expected_ND, rtol=1e-5, atol=1e-5)
    assert_close(entries, expected, rtol=1e-5, atol=1e-5)
    assert [experts_NA.tolist() for experts_NA in routes] == [experts_NA.tolist() for experts_NA in expected_routes]


@in_bytes
@pytest.mark.parametrize("form", ["", "_int8", "_int4"])
def test_so_it_is_in_bfloat16_and_in_codes(form, called):
    model = build(CFG)
    model = quantised(model, form[1:]) if form else model.to(torch.bfloat16).computing_in(torch.bfloat16)
    hidden_ND, _, entries = decoded(model, parts=False, called=called)
    assert called == [name + form for name in ("latent_step", "gated", "latent_step", "routed")]
    expected_ND, _, expected = decoded(model, parts=True)
    assert (hidden_ND - expected_ND).norm() < 2e-2 * expected_ND.norm()
    assert (entries - expected).norm() < 2e-2 * expected.norm()


def test_what_is_more_than_its_matrices_goes_part_by_part(called):
    model = build(CFG)
    adapt(model, LoraConfig(rank=2), seed=0)
    decoded(model, parts=False)
    assert called == []
    grouped = build(replace(CFG, ffn=replace(CFG.ffn, n_groups=4, n_active_groups=2)))
    decoded(grouped, parts=False, cache=cache_of(CFG, kind=Int8Cache), called=called)
    assert set(called) == {"gated"}


def test_a_token_that_is_no_number_stays_alone(called):
    model = build(CFG)
    with torch.no_grad():
        model.embed.weight[2] = torch.nan
    hidden_ND, _, _ = decoded(model, parts=False, called=called)
    assert called
    assert hidden_ND[1].isnan().all()
    assert hidden_ND[[0, 2]].isfinite().all()
