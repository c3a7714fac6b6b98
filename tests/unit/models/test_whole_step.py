"""A decode step in one call in C, or its parts in one call each, is the step of the parts (kernels/native/)."""

import ctypes
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from sobre.kernels import select
from sobre.kernels.int8_entries import from_int8
from sobre.kernels.native import build as native
from sobre.kernels.native import layers, whole
from sobre.models.adapt import adapt
from sobre.models.cache import BlockTables, Int8Cache, PagedCache
from sobre.models.config import BLOCK, DenseConfig, GQAConfig, LoraConfig, MLAConfig, ModelConfig, MoEConfig, RopeConfig
from sobre.models.quantised import quantised
from sobre.models.step import StepInput
from sobre.models.whole_step import WholeStep

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
    d_model=72,  # widths and experts that fill no register
    attention=MLAConfig(n_heads=4, kv_rank=32, nope_dim=8, rope_dim=4, v_dim=8),
    ffn=replace(CFG.ffn, n_experts=7, score="softmax", biased=False, bias_speed=0.0, norm_weights=False, n_shared=0),
)
QWEN = replace(
    CFG,
    attention=GQAConfig(n_heads=4, n_kv_heads=2, head_dim=32, qk_norm=True),
    ffn=DenseConfig(d_ff=96),
    rope=RopeConfig(interleaved=False),
    tied=True,
)
MINIMAX = replace(
    SOFTMAX, attention=GQAConfig(n_heads=4, n_kv_heads=1, head_dim=16, qk_norm=True, norm_all_heads=True, rope_dim=6)
)
LENGTHS = (5, 17, 1)
STEP = StepInput(torch.tensor([1, 2, 3]), (1, 1, 1), LENGTHS, slots=(0, 1, 2))
GUESSES = StepInput(torch.tensor([1, 9, 2, 3, 4, 5, 6, 7]), (2, 1, 5), LENGTHS, slots=(0, 1, 2))
"""Sequences that bring guesses at their next tokens, too."""
PIECES = StepInput(torch.arange(18) * 3 % 64, (6, 6, 6), LENGTHS, slots=(0, 1, 2))
"""Sequences that bring the rest of a prompt whose beginning was found."""


def cache_of(cfg, dtype=torch.float32, kind=PagedCache):
    tables = BlockTables(3, 32, "cpu")
    for slot, blocks in enumerate(((3, 1), (5, 0), (2, 4))):
        tables.place(slot, blocks)
    return kind(cfg, tables, 6, dtype)


IN_PARTS = dict.fromkeys(select.WHOLE, "parts")


def after_prompts(model, cache=None):
    """A cache that holds three prompts."""
    cache = cache_of(model.cfg, model.dtype) if cache is None else cache
    with torch.no_grad(), select.overrides(IN_PARTS):
        model(StepInput(torch.arange(sum(LENGTHS)) * 7 % 64, LENGTHS, slots=(0, 1, 2)), cache)
    return cache


def entries_of(cache):
    """All that the cache holds, as numbers."""
    entries, *scales = (kept_LB.unflatten(-1, (BLOCK, -1)) for kept_LB in cache.layers.values())
    return from_int8(entries, *scales, cache.attention.cache_parts, torch.float32) if scales else entries.float()


def decoded(model, *, parts, cache=None, called=None, step=STEP):
    """Hidden states, routes and the cache's entries of a decode step after three prompts."""
    cache = after_prompts(model, cache)
    if called is not None:
        called.clear()
    with torch.no_grad(), select.overrides(IN_PARTS if parts else {}):
        output = model(step, cache)
    return output.hidden_ND.float(), output.routes, entries_of(cache)


def decoded_at_once(model, whole_step=None, step=STEP, cache=None):
    """The same, all layers in one call."""
    cache = after_prompts(model, cache)
    with torch.no_grad():
        output = (whole_step or WholeStep(model)).run(step, cache)
    return output.hidden_ND.float(), output.routes, entries_of(cache)


@pytest.fixture
def called(monkeypatch):
    """The functions of whole.py's and layers.py's pages that were called."""
    names = []
    for page in (whole, layers):
        monkeypatch.setattr(page, "call", lambda name, *given: (names.append(name), native.call(name, *given))[1])
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


@pytest.mark.parametrize("kind", [PagedCache, Int8Cache])
def test_a_token_that_is_no_number_is_seen_by_those_after_it_and_by_no_other_sequence(kind):
    model = build(CFG)
    with torch.no_grad():
        model.embed.weight[GUESSES.tokens_N[0]] = torch.nan
    hidden_ND, *_ = decoded_at_once(model, step=GUESSES, cache=cache_of(CFG, kind=kind))
    assert hidden_ND[:2].isnan().all()
    assert hidden_ND[2:].isfinite().all()


def test_a_token_that_is_no_number_stays_alone(called):
    model = build(CFG)
    with torch.no_grad():
        model.embed.weight[2] = torch.nan
    hidden_ND, _, _ = decoded(model, parts=False, called=called)
    assert called
    assert hidden_ND[1].isnan().all()
    assert hidden_ND[[0, 2]].isfinite().all()


@pytest.mark.parametrize("kind", [PagedCache, Int8Cache])
@pytest.mark.parametrize("step", [STEP, GUESSES, PIECES], ids=["one each", "guesses", "pieces"])
@pytest.mark.parametrize("cfg", [CFG, SOFTMAX, QWEN, MINIMAX])
def test_all_layers_in_one_call_are_the_layers_one_by_one(cfg, step, kind, called):
    model = build(cfg)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # no two norms alike, so that none stands for another
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
    hidden_ND, routes, entries = decoded_at_once(model, step=step, cache=cache_of(cfg, kind=kind))
    assert called == ["layers"]
    expected_ND, expected_routes, expected = decoded(model, parts=True, step=step, cache=cache_of(cfg, kind=kind))
    assert_close(hidden_ND, expected_ND, rtol=1e-5, atol=1e-5)
    assert_close(entries, expected, rtol=1e-5, atol=1e-5)
    assert [experts_NA.tolist() for experts_NA in routes] == [experts_NA.tolist() for experts_NA in expected_routes]


@in_bytes
@pytest.mark.parametrize("step", [STEP, GUESSES], ids=["one each", "guesses"])
@pytest.mark.parametrize("form", ["", "_int8", "_int4"])
@pytest.mark.parametrize("kind", [PagedCache, Int8Cache])
@pytest.mark.parametrize("cfg", [CFG, QWEN])
def test_so_they_are_in_bfloat16_and_in_codes(cfg, kind, form, step, called):
    model = build(cfg)
    model = quantised(model, form[1:]) if form else model.to(torch.bfloat16).computing_in(torch.bfloat16)
    hidden_ND, _, entries = decoded_at_once(model, step=step, cache=cache_of(cfg, model.dtype, kind))
    assert called == [f"layers{form}"]
    expected_ND, _, expected = decoded(model, parts=True, step=step, cache=cache_of(cfg, model.dtype, kind))
    assert (hidden_ND - expected_ND).norm() < 2e-2 * expected_ND.norm()
    assert (entries - expected).norm() < 2e-2 * expected.norm()


def test_what_one_call_does_not_take_is_left_to_the_parts():
    def runs(cfg=CFG, step=STEP, kind=PagedCache, change=lambda model: None):
        model = build(cfg)
        cache = after_prompts(model, cache_of(cfg, kind=kind))
        change(model)
        with torch.no_grad():
            return WholeStep(model).run(step, cache) is not None

    assert runs()
    assert not runs(replace(CFG, attention=replace(CFG.attention, bias=True)))
    assert not runs(replace(QWEN, attention=replace(QWEN.attention, qkv_bias=True)))
    assert not runs(replace(CFG, ffn=replace(CFG.ffn, n_groups=4, n_active_groups=2)))
    assert runs(kind=Int8Cache)
    assert runs(step=StepInput(torch.arange(16), (5, 5, 6), LENGTHS, slots=(0, 1, 2)))
    assert runs(step=PIECES)
    assert not runs(step=StepInput(torch.arange(36), (14, 10, 12), LENGTHS, slots=(0, 1, 2)))  # the parts widen
    assert runs(QWEN, step=StepInput(torch.arange(36), (14, 10, 12), LENGTHS, slots=(0, 1, 2)))
    assert not runs(change=lambda model: adapt(model, LoraConfig(rank=2), seed=0))
    assert not runs(change=lambda model: model.layers[1].ffn.register_forward_hook(lambda *_: None))
    assert not runs(change=lambda model: model.computing_in(torch.bfloat16).layers[0].attn.o.to(torch.bfloat16))
    with select.overrides({"layers": "parts"}):
        assert not runs()


@in_bytes
def test_many_tokens_go_at_once_where_weights_are_numbers():
    def both(model, n, length=1):
        tables = BlockTables(n, 32, "cpu")
        for slot in range(n):
            tables.place(slot, [n - 1 - slot])
        cache, slots = PagedCache(model.cfg, tables, n, model.dtype), tuple(range(n))
        step = StepInput(torch.arange(n * length) * 5 % 64, (length,) * n, (3,) * n, slots)
        with torch.no_grad(), select.overrides(IN_PARTS):
            model(StepInput(torch.arange(3 * n) * 7 % 64, (3,) * n, slots=slots), cache)
            expected = model(step, cache)
        with torch.no_grad():
            return WholeStep(model).run(step, cache), expected

    for n in (17, 128):
        found, expected = both(build(CFG), n)
        assert_close(found.hidden_ND, expected.hidden_ND, rtol=1e-5, atol=1e-5)
        assert_close(found.routes_LNA, expected.routes_LNA)
    assert both(build(CFG), 129)[0] is None
    found, expected = both(build(QWEN), 9, length=2)
    assert_close(found.hidden_ND, expected.hidden_ND, rtol=1e-5, atol=1e-5)
    assert both(quantised(build(CFG), "int8"), 17)[0] is None


def test_the_table_of_layers_follows_the_weights_when_told():
    model = build(CFG).to(torch.bfloat16).computing_in(torch.bfloat16)  # norms are widened once, into the table
    whole_step = WholeStep(model)
    before_ND, *_ = decoded_at_once(model, whole_step)
    with torch.no_grad():
        model.norm.weight.mul_(2.0)
    whole_step.forget()
    after_ND, *_ = decoded_at_once(model, whole_step)
    expected_ND, *_ = decoded(model, parts=True)
    assert_close(after_ND, 2 * before_ND)
    assert (after_ND - expected_ND).norm() < 2e-2 * expected_ND.norm()


def test_python_and_c_lay_the_table_out_alike():
    layer_bytes = native.library().layer_bytes
    layer_bytes.restype = ctypes.c_long
    assert layer_bytes() == sum(map(ctypes.sizeof, layers.STRUCTURES))


@pytest.mark.parametrize("cfg", [CFG, QWEN])
@pytest.mark.parametrize("kind", [PagedCache, Int8Cache])
@pytest.mark.parametrize("step", [STEP, GUESSES])
def test_the_mtp_module_s_step_in_one_call_is_that_of_its_parts(cfg, kind, step, called):
    model = build(replace(cfg, n_mtp=1))
    hidden_ND = torch.randn(step.tokens_N.numel(), cfg.d_model, generator=torch.Generator().manual_seed(1))
    found = []
    for at_once in (True, False):
        tables = cache_of(model.cfg).tables
        cache = kind(model.cfg, tables, 6, model.dtype, n_layers=cfg.n_layers + 1)
        prompts = StepInput(torch.arange(sum(LENGTHS)) * 7 % 64, LENGTHS, slots=(0, 1, 2))
        with torch.no_grad():
            with select.overrides(IN_PARTS):
                model.predict_second(model(prompts, cache).hidden_ND, prompts.tokens_N, prompts, cache)
            called.clear()
            if at_once:
                output = WholeStep(model, ahead=True).predict_second(hidden_ND, step.tokens_N, step, cache)
                assert called == ["layers"]
            else:
                with select.overrides(IN_PARTS):
                    output = model.predict_second(hidden_ND, step.tokens_N, step, cache)
        found.append((output.hidden_ND, entries_of(cache), [routes_NA.tolist() for routes_NA in output.routes]))
    ours, theirs = found
    assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    assert_close(ours[1], theirs[1], rtol=1e-5, atol=2e-2 if kind is Int8Cache else 1e-5)
    assert ours[2] == theirs[2]
    assert WholeStep(build(cfg), ahead=True).predict_second(hidden_ND, step.tokens_N, step, cache) is None
