"""Every fast kernel is its reference: forward and gradient, in every dtype, at awkward shapes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sobre.kernels import (
    attention,
    coded,
    coded_torch,
    experts,
    likely,
    loss,
    moe,
    pointwise,
    reference,
    sdpa,
    select,
    tail,
)
from sobre.kernels.native import attention as native_attention
from sobre.kernels.native import build as native
from sobre.kernels.native import choice as native_choice
from sobre.kernels.native import coded as native_coded
from sobre.kernels.native import experts as native_experts
from sobre.kernels.native import likely as native_likely
from sobre.kernels.native import linear as native_linear
from sobre.kernels.native import pointwise as native_pointwise
from sobre.kernels.native import rotary as native_rotary
from sobre.kernels.paged import Places

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1.5e-2}
DTYPES = list(TOLERANCE)
F32 = torch.float32
IN_MEMORY = [torch.float32, torch.bfloat16]
compiled = pytest.mark.skipif(native.lacks() is not None, reason=str(native.lacks()))
no_pairs = native.lacks_bfloat16_products()
multiplies_pairs = pytest.mark.skipif(no_pairs is not None, reason=str(no_pairs))


def results(call, tensors: list[Tensor], *rest, seed: int = 7) -> list[Tensor]:
    """Output and gradients of `call(*tensors, *rest)` under one fixed random cotangent."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = call(*leaves, *rest)
    cotangent = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    out.backward(cotangent.to(out.dtype))
    return [out.detach()] + [leaf.grad for leaf in leaves]


def assert_same(fast, exact, tensors: list[Tensor], *rest) -> None:
    """`fast` in the tensors' dtype equals `exact` in float64, relative to the size of each result."""
    got = results(fast, tensors, *rest)
    wanted = results(exact, [tensor.double() for tensor in tensors], *rest)
    for value, truth in zip(got, wanted, strict=True):
        assert value.shape == truth.shape
        scale = truth.norm().clamp_min(1e-30)
        assert (value.double() - truth).norm() / scale < TOLERANCE[tensors[0].dtype]


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def ragged(lengths: tuple[int, ...], heads: int, groups: int, qk: int, v: int, dtype: torch.dtype) -> list[Tensor]:
    """q_NHK, k_NGK, v_NGW."""
    n = sum(lengths)
    shapes = [(n, heads, qk), (n, groups, qk), (n, groups, v)]
    return [randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lengths", "heads", "groups", "qk", "v"),
    [
        ((5, 5), 4, 2, 6, 3),
        ((1,), 2, 2, 8, 8),
        ((128, 128), 2, 1, 8, 4),
        ((300,), 4, 2, 12, 8),
        ((7, 300, 1, 16, 17, 2), 4, 2, 6, 8),
        ((129, 40, 129, 135, 33), 2, 2, 6, 6),
    ],
)
def test_block_attention_is_attention(dtype, lengths, heads, groups, qk, v):
    tensors = ragged(lengths, heads, groups, qk, v, dtype)
    assert_same(attention.causal_attention, reference.causal_attention, tensors, lengths, qk**-0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [tail.block, tail.fused])
@pytest.mark.parametrize(
    ("n", "n_keys", "heads", "groups", "qk", "v"),
    [(1, 3, 2, 1, 8, 8), (5, 5, 4, 2, 6, 3), (3, 9, 2, 2, 12, 8), (130, 300, 4, 2, 8, 4)],
)
def test_attention_of_the_last_tokens_is_that_part_of_attention(dtype, kernel, n, n_keys, heads, groups, qk, v):
    q, *keys = ragged((n_keys,), heads, groups, qk, v, dtype)
    assert_same(kernel, reference.tail_attention, [q[-n:], *keys], qk**-0.5)
    whole = reference.causal_attention(q, *keys, (n_keys,), qk**-0.5)
    assert_close(reference.tail_attention(q[-n:], *keys, qk**-0.5), whole[-n:])


@compiled
@pytest.mark.parametrize("dtype", IN_MEMORY)
@pytest.mark.parametrize(
    ("n", "n_keys", "heads", "groups", "qk", "v"),
    [(1, 3, 2, 1, 8, 8), (5, 5, 4, 2, 6, 3), (7, 40, 2, 2, 13, 8), (130, 300, 4, 2, 8, 18), (2, 161, 3, 3, 16, 16)],
)
def test_attention_of_the_last_tokens_in_c_is_that_attention(dtype, n, n_keys, heads, groups, qk, v):
    q, *keys = ragged((n_keys,), heads, groups, qk, v, dtype)
    exact = reference.tail_attention(*(x.double() for x in (q[-n:], *keys)), qk**-0.5)
    found = native_attention.tail_attention(q[-n:], *keys, qk**-0.5)
    assert (found.double() - exact).norm() / exact.norm() < TOLERANCE[dtype]
    learning = [x.clone().requires_grad_() for x in (q[-n:], *keys)]
    native_attention.tail_attention(*learning, qk**-0.5).sum().backward()
    assert all(x.grad is not None for x in learning)


def test_like_lengths_share_a_group_and_far_ones_do_not():
    lengths = [30, 400, 17, 31, 390, 32]
    groups = attention.group_lengths(lengths, n_heads=4)
    assert [sorted(group) for group in groups] == [[0, 2, 3, 5], [1, 4]]
    assert attention.group_lengths([40, 90] * 2, n_heads=1) == [[0, 2, 1, 3]]  # two calls would cost more than padding
    assert attention.group_lengths([40, 90] * 20, n_heads=1) == [list(range(0, 40, 2)), list(range(1, 40, 2))]


def test_block_attention_recomputes_what_it_may_not_keep(monkeypatch):
    tensors, lengths = ragged((200, 90), 4, 4, 8, 8, torch.float32), (200, 90)
    kept = results(attention.causal_attention, tensors, lengths, 0.3)
    monkeypatch.setattr(attention, "SAVE_BYTES", 0)
    for again, first in zip(results(attention.causal_attention, tensors, lengths, 0.3), kept, strict=True):
        assert torch.equal(again, first)


def test_no_query_sees_a_later_key_or_another_sequence():
    q, k, v = ragged((10, 150, 12), 2, 2, 8, 8, torch.float32)
    before = attention.causal_attention(q, k, v, (10, 150, 12), 0.3)
    k[150:160], v[150:160] = 9.0, -9.0
    after = attention.causal_attention(q, k, v, (10, 150, 12), 0.3)
    assert torch.equal(after[:150], before[:150])
    assert torch.equal(after[160:], before[160:])
    assert (after[150:160] - before[150:160]).abs().amin() > 0


def test_block_attention_passes_gradcheck():
    tensors = [tensor.requires_grad_() for tensor in ragged((3, 2), 2, 1, 4, 2, torch.float64)]
    assert torch.autograd.gradcheck(lambda q, k, v: attention.causal_attention(q, k, v, (3, 2), 0.5), tensors)


def routed(n: int, n_experts: int, n_active: int, kind: str, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """(x, weights, gate, up, down) and experts_NA, whose loads are spread, on one expert, or on half of them."""
    d, f = 16, 24
    scores = torch.rand(n, n_experts, generator=torch.Generator().manual_seed(5))
    if kind == "one":
        scores[:, 2] = 2.0
    elif kind == "half":
        scores[:, n_experts // 2 :] = -1.0
    experts_NA = scores.topk(n_active, dim=-1).indices
    shapes = [(n, d), (n, n_active), (n_experts, f, d), (n_experts, f, d), (n_experts, d, f)]
    return [randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)], experts_NA


def moe_call(kernel, experts_NA):
    return lambda x, weights, gate, up, down: kernel(x, experts_NA, weights, gate, up, down)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "n_experts", "n_active", "kind"),
    [(1, 8, 2, "spread"), (100, 8, 2, "spread"), (70, 8, 1, "one"), (90, 8, 2, "half"), (40, 4, 4, "spread")],
)
def test_routed_experts_are_the_sum_over_the_chosen(dtype, n, n_experts, n_active, kind):
    tensors, experts_NA = routed(n, n_experts, n_active, kind, dtype)
    assert_same(moe_call(moe.moe_ffn, experts_NA), moe_call(reference.moe_ffn, experts_NA), tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 3, 40, 400])
def test_experts_without_gradients_give_what_training_sees(dtype, n):
    tensors, experts_NA = routed(n, 16, 4, "spread", dtype)
    with torch.no_grad():
        few = moe_call(moe.moe_ffn, experts_NA)(*tensors)
    truth = moe_call(reference.moe_ffn, experts_NA)(*[tensor.double() for tensor in tensors])
    assert (few.double() - truth).norm() / truth.norm() < TOLERANCE[dtype]


def test_one_token_alone_gets_what_it_gets_in_company_and_wakes_no_other_expert():
    (x_ND, weights_NA, *stacked), experts_NA = routed(3, 16, 4, "spread", torch.float32)
    with torch.no_grad():
        together_ND = moe.moe_ffn(x_ND, experts_NA, weights_NA, *stacked)
        for n, experts_A in enumerate(experts_NA):
            asleep = [e for e in range(16) if e not in experts_A.tolist()]
            poisoned = [weight.index_fill(0, torch.tensor(asleep), torch.nan) for weight in stacked]
            alone_1D = moe.moe_ffn(x_ND[n : n + 1], experts_A.unsqueeze(0), weights_NA[n : n + 1], *poisoned)
            assert_close(alone_1D[0], together_ND[n])


def test_experts_nobody_visits_get_zero_gradient_and_padding_leaks_nowhere():
    tensors, experts_NA = routed(33, 8, 2, "half", torch.float32)
    _, _, _, dgate, dup, ddown = results(moe_call(moe.moe_ffn, experts_NA), tensors)
    for grad in (dgate, dup, ddown):
        assert grad[4:].abs().max() == 0
        assert grad[:4].abs().sum((1, 2)).min() > 0


def test_gradients_of_experts_lie_as_the_experts_do():
    (x_ND, weights_NA, *stacked), experts_NA = routed(33, 8, 2, "spread", torch.float32)
    leaves = [weight.requires_grad_() for weight in stacked]
    for grad in torch.autograd.grad(moe.moe_ffn(x_ND, experts_NA, weights_NA, *leaves).sum(), leaves):
        assert grad.is_contiguous()  # not a view of two side by side


@pytest.mark.parametrize("frozen", [(2, 3, 4), (2,), (3, 4)])
def test_frozen_experts_get_no_gradient_and_the_rest_get_theirs(frozen):
    tensors, experts_NA = routed(33, 8, 2, "spread", torch.float32)
    learning = [i for i in range(5) if i not in frozen]

    def partly(*some: Tensor) -> Tensor:
        every = dict(enumerate(tensors)) | dict(zip(learning, some, strict=True))
        return moe_call(moe.moe_ffn, experts_NA)(*(every[i] for i in range(5)))

    whole = results(moe_call(moe.moe_ffn, experts_NA), tensors)
    part = results(partly, [tensors[i] for i in learning])
    for got, wanted in zip(part, [whole[0], *(whole[i + 1] for i in learning)], strict=True):
        assert torch.equal(got, wanted)


@compiled
@pytest.mark.parametrize(("n_experts", "n_active"), [(1, 1), (7, 3), (32, 4), (256, 8), (5, 5)])
def test_the_best_experts_in_c_are_those_of_the_largest_scores_in_their_order(n_experts, n_active):
    scores_NE = randn(300, n_experts, dtype=torch.float32)
    assert torch.equal(native_choice.best_experts(scores_NE, n_active), reference.best_experts(scores_NE, n_active))


@compiled
@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([1.0, 2.0, 2.0, 0.5], [1, 2, 0]),
        ([-0.0, 0.0, -1.0, -2.0], [0, 1, 2]),
        ([-3.0, -1.0, float("-inf"), -2.0], [1, 3, 0]),
        ([float("-inf")] * 4, [0, 1, 2]),
        ([1.0, float("inf"), float("nan"), -float("nan")], [2, 3, 1]),
    ],
)
def test_of_equal_scores_the_first_expert_is_chosen_and_no_number_hides(scores, best):
    assert native_choice.best_experts(torch.tensor([scores]), 3).tolist() == [best]


@pytest.mark.parametrize("kernel", [likely.keep_likely, pytest.param(native_likely.keep_likely, marks=compiled)])
@pytest.mark.parametrize("n_tokens", [1, 7, 300, 5000])
@pytest.mark.parametrize("heat", [0.1, 3.0])
def test_filters_leave_what_sorting_the_whole_row_leaves(kernel, n_tokens, heat):
    limits = [(k, p, m) for k in (1, 3, n_tokens - 1, n_tokens) for p in (1e-9, 0.5, 0.95, 1.0) for m in (0.0, 0.3)]
    top_k, top_p, min_p = zip(*limits, strict=True)
    probs_RV = (randn(len(limits) + 2, n_tokens, dtype=torch.float32) * heat).softmax(-1)
    probs_RV[:, n_tokens // 2 :] = probs_RV[:, : n_tokens - n_tokens // 2].flip(-1)  # ties
    rows_F = torch.arange(len(limits)) + 1
    given = (rows_F, torch.tensor(top_k).clamp(min=1), torch.tensor(top_p, dtype=torch.float64), torch.tensor(min_p))
    most_k = max((k for k in top_k if k < n_tokens), default=0)
    found_RV, wanted_RV = probs_RV.clone(), probs_RV.clone()
    kernel(found_RV, *given, most_k)
    reference.keep_likely(wanted_RV, *given, most_k)
    assert torch.equal(found_RV, wanted_RV)
    assert torch.equal(found_RV[[0, -1]], probs_RV[[0, -1]])
    assert (wanted_RV > 0).any(-1).all()


@compiled
def test_filters_in_c_leave_a_row_that_is_no_distribution_for_others_to_see():
    probs_RV = torch.tensor([[0.5, torch.nan, 0.25, 0.25], [0.5, 0.25, 0.125, 0.125]])
    native_likely.keep_likely(
        probs_RV, torch.tensor([0, 1]), torch.tensor([2, 2]), torch.tensor([0.9, 0.9]).double(), torch.zeros(2), 2
    )
    assert probs_RV[0].isnan().any()
    assert probs_RV[1].tolist() == [0.5, 0.25, 0.0, 0.0]


def test_rows_of_each_expert_are_padded_and_every_copy_is_found_again():
    experts_NA = torch.tensor([[0, 3], [3, 1], [3, 0]])
    plan = moe.plan_rows(experts_NA, 5, pad=4)
    assert [(expert, rows.stop - rows.start) for expert, rows in plan.rows] == [(0, 4), (1, 4), (3, 4)]
    assert torch.equal(plan.token_P[plan.place_NA], torch.arange(3).unsqueeze(1).expand(3, 2))


def test_routed_experts_take_strided_inputs():
    tensors, experts_NA = routed(50, 8, 2, "spread", torch.float32)
    strided = [tensor.mT.contiguous().mT for tensor in tensors]
    assert not strided[2].is_contiguous()
    assert_same(moe_call(moe.moe_ffn, experts_NA), moe_call(reference.moe_ffn, experts_NA), strided)


def test_routed_experts_pass_gradcheck():
    tensors, experts_NA = routed(3, 4, 2, "spread", torch.float64)
    x, weights, gate, up, down = tensors
    small = [x[:, :2], weights, gate[:, :3, :2], up[:, :3, :2], down[:, :2, :3]]
    small = [tensor.clone().requires_grad_() for tensor in small]
    assert torch.autograd.gradcheck(moe_call(moe.moe_ffn, experts_NA), small)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [[3, 0, 5], [0, 0, 8], [0, 0, 0]])
def test_grouped_linear_applies_each_experts_matrix(dtype, counts):
    tensors = [randn(sum(counts), 16, dtype=dtype), randn(3, 8, 16, dtype=dtype, seed=1)]
    assert_same(moe.grouped_linear, reference.grouped_linear, tensors, counts)
    assert_same(moe.grouped_linear, reference.grouped_linear, tensors, torch.tensor(counts))


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotation_without_gradients_has_the_bits_of_training(interleaved):
    x_NHR, angles_NR2 = randn(5, 3, 8, dtype=torch.float32), randn(5, 4, dtype=torch.float32, seed=1)
    rotation = (angles_NR2.cos(), angles_NR2.sin(), interleaved)
    learned_NHR = pointwise.rope(x_NHR.clone().requires_grad_(), *rotation)
    with torch.no_grad():
        assert torch.equal(pointwise.rope(x_NHR, *rotation), learned_NHR)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("n", [1, 33, 100])
def test_chunked_head_is_cross_entropy(dtype, keep, n, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * 50 * 32)  # 32 tokens
    if not keep:
        monkeypatch.setattr(loss, "SAVE_BYTES", 0)  # the smallest chunks: 32 tokens
    tensors = [randn(n, 12, dtype=dtype), randn(50, 12, dtype=dtype, seed=1)]
    targets_N = torch.randint(50, (n,), generator=torch.Generator().manual_seed(0))
    assert_same(loss.linear_nll, reference.linear_nll, tensors, targets_N)
    kept_NB = torch.randint(256, (n, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    targets_N = reference.bits(kept_NB, 50).int().argmax(1)  # the last ten words have no bit at all
    assert_same(loss.linear_nll, reference.linear_nll, tensors, targets_N, kept_NB)


def test_a_word_that_is_not_kept_weighs_nothing_and_learns_nothing():
    weight_VD = torch.tensor([[0.0], [1.0], [2.0], [3.0], [9.0]], requires_grad=True)
    kept_NB = torch.tensor([[0b01010]], dtype=torch.uint8)  # words 1 and 3
    nll_N = reference.linear_nll(torch.ones(1, 1), weight_VD, torch.tensor([1]), kept_NB)
    nll_N.sum().backward()
    p = math.exp(1) / (math.exp(1) + math.exp(3))
    assert float(nll_N.detach()) == pytest.approx(-math.log(p), abs=1e-6)
    assert weight_VD.grad.flatten().tolist() == pytest.approx([0, p - 1, 0, 1 - p, 0], abs=1e-6)


@pytest.mark.parametrize("keep", [True, False])
def test_a_frozen_head_gives_the_same_gradient_to_what_is_below(keep, monkeypatch):
    if not keep:
        monkeypatch.setattr(loss, "SAVE_BYTES", 0)
    hidden_ND, weight_VD = randn(70, 12, dtype=torch.float32), randn(50, 12, dtype=torch.float32, seed=1)
    targets_N = torch.randint(50, (70,), generator=torch.Generator().manual_seed(0))
    whole = results(loss.linear_nll, [hidden_ND, weight_VD], targets_N)
    part = results(lambda hidden_ND: loss.linear_nll(hidden_ND, weight_VD, targets_N), [hidden_ND])
    assert_close(part[0], whole[0])
    assert_close(part[1], whole[1])


def test_chunked_head_stays_finite_when_the_target_is_hopeless():
    hidden_ND, weight_VD = torch.full((1, 1), 300.0), torch.tensor([[1.0], [-1.0]])
    assert_close(loss.linear_nll(hidden_ND, weight_VD, torch.tensor([1])), torch.tensor([600.0]))


def test_chunked_head_of_no_tokens_is_empty():
    assert loss.linear_nll(torch.empty(0, 4), torch.ones(7, 4), torch.empty(0, dtype=torch.long)).shape == (0,)


@compiled
@pytest.mark.parametrize("dtype", IN_MEMORY)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(0,), (1,), (2,), (3,), (6,), (16,), (17,), (2, 3)])
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (31, 9), (136, 5), (300, 4)])
def test_few_rows_in_c_are_a_product(dtype, biased, shape, n_in, n_out):
    x = randn(*shape, 2 * n_in, dtype=dtype)[..., ::2]
    weight_OI = randn(n_out, n_in, dtype=dtype, seed=1)
    bias_O = randn(n_out, dtype=dtype, seed=2) if biased else None
    with torch.no_grad():
        got = native_linear.linear(x, weight_OI, bias_O)
    exact = reference.linear(x.double(), weight_OI.double(), None if bias_O is None else bias_O.double())
    assert (got.shape, got.dtype) == (exact.shape, dtype)
    assert (got - exact).norm() <= TOLERANCE[dtype] * exact.norm()


@compiled
def test_a_product_that_learns_and_one_of_strided_weights_are_the_librarys():
    x_NI, weight_OI = randn(3, 64, dtype=torch.bfloat16), randn(40, 64, dtype=torch.bfloat16, seed=1)
    assert_same(native_linear.linear, reference.linear, [x_NI, weight_OI], None)
    with torch.no_grad():
        turned = native_linear.linear(x_NI, weight_OI.t().contiguous().t(), None)
    assert_close(turned, reference.linear(x_NI, weight_OI, None), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8), (33, 16), (3, 5, 8)])
def test_fused_rms_norm_is_rms_norm(dtype, shape):
    tensors = [randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype, seed=1)]
    assert_same(pointwise.rms_norm, reference.rms_norm, tensors, 1e-6)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_fused_rms_norm_is_the_same_without_gradients(weight_dtype):
    x, weight = randn(9, 16, dtype=torch.bfloat16), randn(16, dtype=weight_dtype, seed=1)
    with torch.no_grad():
        quiet = pointwise.rms_norm(x, weight, 1e-6)
    assert quiet.dtype == torch.bfloat16
    assert_close(quiet, reference.rms_norm(x, weight, 1e-6), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [True, False])
def test_fused_rope_rotates_pairs(dtype, interleaved):
    angles_N2 = randn(7, 4, dtype=torch.float64, seed=1)
    tables = (
        (angles_N2.cos(), angles_N2.sin())
        if dtype == torch.float64
        else (angles_N2.cos().float(), angles_N2.sin().float())
    )
    strided_NHR = randn(7, 3, 20, dtype=dtype)[..., 5:13]
    assert_same(pointwise.rope, reference.rope, [strided_NHR], *tables, interleaved)


def test_the_two_rope_layouts_are_one_rotation_after_a_permutation():
    x_NHR, angles_N2 = randn(5, 2, 8, dtype=torch.float32), randn(5, 4, dtype=torch.float32, seed=1)
    pairs = reference.rope(x_NHR, angles_N2.cos(), angles_N2.sin(), True)
    halves_NHR = torch.cat([x_NHR[..., 0::2], x_NHR[..., 1::2]], -1)
    halves = reference.rope(halves_NHR, angles_N2.cos(), angles_N2.sin(), False)
    assert_close(halves, torch.cat([pairs[..., 0::2], pairs[..., 1::2]], -1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_swiglu_is_swiglu(dtype):
    assert_same(pointwise.swiglu, reference.swiglu, [randn(9, 16, dtype=dtype), randn(9, 16, dtype=dtype, seed=1)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lengths", "heads", "groups", "qk", "v"),
    [((5, 5), 4, 2, 6, 3), ((9,), 2, 2, 8, 8), ((7, 300, 1, 16, 17, 2), 4, 2, 6, 8), ((40, 33), 2, 2, 12, 6)],
)
def test_fused_attention_is_attention(dtype, lengths, heads, groups, qk, v):
    tensors = ragged(lengths, heads, groups, qk, v, dtype)
    assert_same(sdpa.causal_attention, reference.causal_attention, tensors, lengths, qk**-0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "n_experts", "n_active", "kind"),
    [(1, 8, 2, "spread"), (100, 8, 2, "spread"), (70, 8, 1, "one"), (90, 8, 2, "half"), (40, 4, 4, "spread")],
)
def test_grouped_experts_are_the_sum_over_the_chosen(dtype, n, n_experts, n_active, kind):
    tensors, experts_NA = routed(n, n_experts, n_active, kind, dtype)
    with select.override("moe_ffn", "grouped"):
        assert_same(moe_call(select.moe_ffn, experts_NA), moe_call(reference.moe_ffn, experts_NA), tensors)


def test_rows_that_torch_cannot_group_are_multiplied_all_the_same():
    x, weights = randn(9, 6, dtype=torch.float32), randn(9, 2, dtype=torch.float32, seed=1)
    gate, up, down = (randn(*shape, dtype=torch.float32, seed=2) for shape in [(3, 5, 6), (3, 5, 6), (3, 6, 5)])
    inputs = (x, torch.arange(18).view(9, 2) % 3, weights, gate, up, down)
    with select.override("moe_ffn", "grouped"):
        assert_close(select.moe_ffn(*inputs), reference.moe_ffn(*inputs))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "width"), [("take_rows", 5), ("sum_rows", 7)])
def test_moving_rows_to_their_experts_and_back_is_a_gather_both_ways(dtype, name, width):
    rows = experts.order(torch.tensor([[2, 0], [2, 1], [0, 2], [2, 0], [1, 2]]), 4)
    x = randn(10 if name == "sum_rows" else 5, width, dtype=dtype)
    assert_same(getattr(experts, name), getattr(reference, name), [x], rows.token_M, rows.place_NA)
    assert rows.ends_E.tolist() == [3, 5, 10, 10]


def cached(lengths: tuple[int, ...], width: int, dtype: torch.dtype = F32) -> tuple[Tensor, Places]:
    """cells_MC, and sequences of these lengths among them, their blocks in any order."""
    table_RB = torch.randperm(3 * len(lengths), generator=torch.Generator().manual_seed(1)).view(-1, 3)
    cells_MC = randn(table_RB.numel() * 16, width, dtype=dtype)
    if len(lengths) == 1:
        return cells_MC, Places(torch.arange(1)[None], torch.tensor(lengths), max(lengths), 16, first=0)
    return cells_MC, Places(table_RB, torch.tensor(lengths), max(lengths), 16)


IN_PLACE = ["gathered", pytest.param("native", marks=compiled)]


@pytest.mark.parametrize("dtype", IN_MEMORY)
@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize(("lengths", "heads", "width", "rank"), [((5,), 3, 12, 8), ((1, 40, 33), 9, 21, 19)])
def test_latent_attention_over_the_cache_is_latent_attention(dtype, name, lengths, heads, width, rank):
    cells_MC, places = cached(lengths, width + 3, dtype)
    q_RHC = randn(len(lengths), heads, width, dtype=dtype, seed=1)
    with select.override("latent_decode", name):
        ours = select.latent_decode(q_RHC, cells_MC, places, rank, 0.3)
    exact = reference.latent_decode(q_RHC.double(), cells_MC.double(), places, rank, 0.3)
    assert ours.dtype == dtype
    assert (ours - exact).norm() / exact.norm() < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", IN_MEMORY)
@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize(
    ("lengths", "heads", "groups", "qk", "v"),
    [((5,), 2, 2, 8, 8), ((1, 40, 33), 6, 1, 16, 20), ((48, 2), 4, 2, 5, 16), ((9, 17), 3, 1, 32, 33)],
)
def test_grouped_attention_over_the_cache_is_grouped_attention(dtype, name, lengths, heads, groups, qk, v):
    cells_MC, places = cached(lengths, groups * (qk + v) + 2, dtype)
    q_RHK = randn(len(lengths), heads, qk, dtype=dtype, seed=1)
    with select.override("grouped_decode", name):
        ours = select.grouped_decode(q_RHK, cells_MC, places, groups, v, 0.3)
    exact = reference.grouped_decode(q_RHK.double(), cells_MC.double(), places, groups, v, 0.3)
    assert ours.dtype == dtype
    assert (ours - exact).norm() / exact.norm() < TOLERANCE[dtype]


def test_cells_of_another_dtype_are_gathered_first():
    cells_MC, places = cached((1, 40, 33), 32)
    q_RHK, cells_MC = randn(3, 2, 8, dtype=F32, seed=1), cells_MC.bfloat16()
    ours = select.grouped_decode(q_RHK, cells_MC, places, 2, 8, 0.3)
    assert_close(ours, reference.grouped_decode(q_RHK, cells_MC.float(), places, 2, 8, 0.3))
    ours = select.latent_decode(q_RHK, cells_MC, places, 4, 0.3)
    assert_close(ours, reference.latent_decode(q_RHK, cells_MC.float(), places, 4, 0.3))


@pytest.mark.parametrize("n_words", [50, 128, 300])
def test_a_number_draws_the_first_token_whose_sum_exceeds_it(n_words):
    logits_RV = randn(40, n_words, dtype=torch.float32) * 3
    uniforms_R = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    uniforms_R[:2] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    for scale_R1 in (None, torch.linspace(0.5, 2, 40).unsqueeze(1)):
        tokens_R, logprobs_R = select.draw(logits_RV, scale_R1, uniforms_R)
        theirs_R, their_logprobs_R = reference.draw(logits_RV, scale_R1, uniforms_R)
        assert tokens_R.tolist() == theirs_R.tolist()
        assert_close(logprobs_R, their_logprobs_R)


@compiled
@pytest.mark.parametrize("dtype", IN_MEMORY)
@pytest.mark.parametrize(
    ("lengths", "heads", "groups", "qk", "v"),
    [
        ((5, 5), 4, 2, 6, 3),
        ((1,), 2, 2, 8, 8),
        ((1,), 2, 2, 48, 32),
        ((4, 16, 17, 3), 3, 3, 16, 16),
        ((300,), 4, 2, 12, 40),
        ((7, 130, 1, 16, 17, 2), 6, 1, 48, 32),
    ],
)
def test_attention_in_c_is_attention(dtype, lengths, heads, groups, qk, v):
    tensors = ragged(lengths, heads, groups, qk, v, dtype)
    assert_same(native_attention.causal_attention, reference.causal_attention, tensors, lengths, qk**-0.5)


@compiled
@pytest.mark.parametrize("dtype", IN_MEMORY)
@pytest.mark.parametrize("n", [0, 1, 2, 11])
@pytest.mark.parametrize(("d", "f", "n_active"), [(3, 5, 1), (64, 40, 3), (33, 160, 7)])
def test_the_experts_of_few_tokens_in_c_are_theirs_and_no_other_is_read(dtype, n, d, f, n_active):
    experts_NA = torch.rand(n, 7, generator=torch.Generator().manual_seed(3)).topk(n_active).indices + 1
    x_ND, weights_NA = randn(n, 2 * d, dtype=dtype)[:, ::2], randn(n, n_active, dtype=F32, seed=1)
    stacked = [randn(9, *size, dtype=dtype, seed=seed) for seed, size in enumerate(((f, d), (f, d), (d, f)), 2)]
    unread = torch.tensor(sorted({*range(9)} - {*experts_NA.flatten().tolist()}))
    poisoned = [weight.index_fill(0, unread, math.nan) for weight in stacked]
    got = native_experts.few_tokens(x_ND, experts_NA, weights_NA, *poisoned)
    wide = [weight.double() for weight in stacked]
    wanted = reference.moe_ffn(x_ND.double(), experts_NA, weights_NA.double(), *wide)
    assert (got.shape, got.dtype) == (wanted.shape, dtype)
    assert (got - wanted).norm() <= TOLERANCE[dtype] * wanted.norm()


def widened(codes_OI: Tensor, scales: Tensor) -> Tensor:
    """What codes stand for, in float64."""
    n_groups = scales.numel() // len(codes_OI)
    return (codes_OI.double().unflatten(1, (n_groups, -1)) * scales.double().view(-1, n_groups, 1)).flatten(1)


def taken(page: Any, x_NI: Tensor, bits: coded.Bits) -> Tensor:
    """The inputs as a page multiplies them: the one in C rounds those of few rows to bytes."""
    in_bytes = page is native_coded and len(x_NI) <= native_coded.MOST_ROWS
    return coded.in_bytes(x_NI, bits) if in_bytes else x_NI


IN_CODES = [coded, coded_torch, pytest.param(native_coded, marks=multiplies_pairs)]


@pytest.mark.parametrize("page", IN_CODES)
@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("n", [1, 2, 3, 9, 17, 40])
@pytest.mark.parametrize(("n_in", "n_out"), [(32, 16), (224, 48), (320, 16)])
def test_a_product_with_codes_is_that_of_what_they_stand_for(page, bits, n, n_in, n_out):
    codes_OI, scales = coded.rounded(randn(n_out, n_in, dtype=F32), bits)
    x_NI = randn(n, 2 * n_in, dtype=torch.bfloat16, seed=1)[:, ::2]
    got = page.linear(x_NI, page.pack(scales, codes_OI, bits))
    wanted = taken(page, x_NI, bits).double() @ widened(codes_OI, scales).T
    assert got.dtype == torch.bfloat16
    assert (got - wanted).norm() / wanted.norm() < 5e-3


def test_codes_of_four_bits_lie_in_half_as_many_bytes_and_come_back():
    codes_OI = torch.arange(-8, 8, dtype=torch.int8).repeat(3, 4).roll(5, 1)
    bytes_OI = coded.in_nibbles(codes_OI)
    assert (bytes_OI.shape, bytes_OI.dtype) == ((3, 32), torch.uint8)
    assert int(bytes_OI[0, 0]) == codes_OI[0, 0] + 8 | (codes_OI[0, 16] + 8) << 4
    assert torch.equal(coded.from_nibbles(bytes_OI), codes_OI)
    assert torch.equal(coded.from_nibbles(bytes_OI[None])[0], codes_OI)


@multiplies_pairs
@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("n_in", [32, 96, 128, 352, 1024])
def test_few_rows_in_bytes_lose_what_rounding_the_inputs_loses_and_no_more(bits, n, n_in):
    codes_OI, scales = coded.rounded(randn(256, n_in, dtype=F32), bits)
    x_NI = randn(n, n_in, dtype=torch.bfloat16, seed=1)
    x_NI[0, ::7] = 0
    got = native_coded.linear(x_NI, native_coded.pack(scales, codes_OI, bits))
    wanted = coded.in_bytes(x_NI, bits).double() @ widened(codes_OI, scales).T
    assert (got - wanted).norm() < 2.3e-3 * wanted.norm()  # the output's own rounding
    lost = (coded.in_bytes(x_NI, bits) - x_NI).norm() / x_NI.float().norm()
    assert 1e-3 < lost < 4.5e-3


@multiplies_pairs
@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_no_number_stays_none_in_bytes(bits, wrong):
    codes_OI, scales = coded.rounded(randn(16, 160, dtype=F32), bits)
    x_NI = randn(2, 160, dtype=torch.bfloat16, seed=1)
    x_NI[1, 150] = wrong
    got = native_coded.linear(x_NI, native_coded.pack(scales, codes_OI, bits))
    assert got[0].isfinite().all()
    assert got[1].isnan().all()


@multiplies_pairs
def test_eight_bits_take_any_width_and_no_row():
    codes_OI, scales = coded.rounded(randn(7, 45, dtype=F32), "int8")
    weight = native_coded.pack(scales, codes_OI, "int8")
    for n in (0, 1, 5, 33):
        x_NI = randn(n, 45, dtype=torch.bfloat16, seed=1)
        wanted = taken(native_coded, x_NI, "int8").double() @ widened(codes_OI, scales).T
        assert (native_coded.linear(x_NI, weight) - wanted).norm() <= 5e-3 * wanted.norm()


@pytest.mark.parametrize("page", IN_CODES)
@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_experts_in_codes_are_those_of_what_they_stand_for(page, bits, n):
    d, f = 64, 96
    experts_NA = torch.rand(n, 6, generator=torch.Generator().manual_seed(3)).topk(3).indices
    x_ND, weights_NA = randn(n, d, dtype=torch.bfloat16), randn(n, 3, dtype=F32, seed=1)
    rounded = [
        [coded.rounded(weight, bits) for weight in randn(6, *size, dtype=F32, seed=seed)]
        for seed, size in enumerate(((f, d), (f, d), (d, f)), 2)
    ]
    packed = [coded.stacked([page.pack(scales, codes_OI, bits) for codes_OI, scales in of_all]) for of_all in rounded]
    wide = [torch.stack([widened(codes_OI, scales) for codes_OI, scales in of_all]) for of_all in rounded]
    got = page.experts(x_ND, experts_NA, weights_NA, *packed)
    wanted = reference.moe_ffn(x_ND.double(), experts_NA, weights_NA.double(), *wide)
    assert (got - wanted).norm() / wanted.norm() < TOLERANCE[torch.bfloat16]


@compiled
@pytest.mark.parametrize("dtype", IN_MEMORY)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 6, 17])
@pytest.mark.parametrize(("k", "w"), [(2, 3), (41, 57), (150, 8)])
@pytest.mark.parametrize("is_turned", [False, True])
def test_few_rows_of_heads_in_c_are_products(dtype, n, k, w, is_turned):
    x_NHK = randn(n, 3, k + 5, dtype=dtype)[..., :k]
    shape = (3, w + 2, k) if is_turned else (3, k + 2, w)
    weight_HKW = randn(*shape, dtype=dtype, seed=1)[:, 2:]  # a head's matrix is a part of another
    weight_HKW = weight_HKW.mT if is_turned else weight_HKW
    with torch.no_grad():
        got = native_linear.heads_linear(x_NHK, weight_HKW)
    wanted = reference.heads_linear(x_NHK.double(), weight_HKW.double())
    assert (got.shape, got.dtype) == (wanted.shape, dtype)
    assert (got - wanted).norm() <= TOLERANCE[dtype] * wanted.norm()


@compiled
@pytest.mark.parametrize("dtype", IN_MEMORY)
@pytest.mark.parametrize("shape", [(1, 3), (3, 7), (65, 8), (2, 130, 67)])
def test_norm_and_swiglu_in_c_are_theirs(dtype, shape):
    x, weight = randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype, seed=1)
    assert_same(native_pointwise.rms_norm, reference.rms_norm, [x, weight], 1e-6)
    assert_same(native_pointwise.swiglu, reference.swiglu, [x * 9, randn(*shape, dtype=dtype, seed=2)])


@compiled
@pytest.mark.parametrize("dtype", IN_MEMORY)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("width", [6, 38])
def test_rope_in_c_turns_pairs_and_its_gradient_turns_them_back(dtype, interleaved, width):
    angles_NR2 = randn(5, width // 2, dtype=torch.float64)

    def of(call):
        return lambda x: call(x, angles_NR2.cos().to(x.dtype), angles_NR2.sin().to(x.dtype), interleaved)

    assert_same(of(native_rotary.rope), of(reference.rope), [randn(5, 2, width, dtype=dtype)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [pointwise.latent_heads, pytest.param(native_rotary.latent_heads, marks=compiled)])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (2, 7)])
def test_heads_of_latent_attention_are_put_together_as_written(dtype, kernel, interleaved, n, m):
    if kernel is native_rotary.latent_heads and dtype not in IN_MEMORY:
        pytest.skip("the pages in C read float32 and bfloat16")
    plain, rotary, value = 11, 18, 9
    angles_NR2 = randn(n, rotary // 2, dtype=torch.float64)

    def of(call):
        def flat(q: Tensor, kv: Tensor, k_rope: Tensor) -> Tensor:
            made = call(q, kv, k_rope, angles_NR2.cos().to(q.dtype), angles_NR2.sin().to(q.dtype), interleaved)
            return torch.cat([part.flatten() for part in made])

        return flat

    shapes = ((n, 3, plain + rotary), (m, 3, plain + value), (m, rotary))
    tensors = [randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
    assert_same(of(kernel), of(reference.latent_heads), tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (5, 8), (3, 21)])
@pytest.mark.parametrize("page", [moe, pytest.param(native_pointwise, marks=compiled)])
def test_weighted_swiglu_of_an_expert_and_its_gradients(dtype, shape, page):
    if page is native_pointwise and dtype not in IN_MEMORY:
        pytest.skip("the pages in C read float32 and bfloat16")
    dinner, gate, up = (randn(*shape, dtype=dtype, seed=i) * 3 for i in range(3))
    weights = randn(shape[0], dtype=dtype, seed=3)
    leaves = [x.double().requires_grad_() for x in (gate, up, weights)]
    inner = reference.weighted_swiglu(*leaves)
    inner.backward(dinner.double())
    both = torch.cat((gate, up), dim=1)
    assert_close(page.weighted_swiglu(both, weights).double(), inner.detach(), rtol=0.02, atol=TOLERANCE[dtype])
    dboth, dweights, again = page.weighted_swiglu_back(dinner.clone(), both, weights)
    found = (*dboth.chunk(2, dim=1), dweights, again)
    for got, exact in zip(found, [*(leaf.grad for leaf in leaves), inner.detach()], strict=True):
        assert (got.double() - exact).norm() <= TOLERANCE[dtype] * exact.norm()


@compiled
@pytest.mark.parametrize("dtype", IN_MEMORY)
@pytest.mark.parametrize("n_words", [1, 7, 64, 133])
def test_loss_of_the_head_in_c_is_its_reference(dtype, n_words):
    targets_N = torch.arange(9, dtype=torch.int32) % n_words

    def fast(hidden: Tensor, weight: Tensor) -> Tensor:
        return loss.linear_nll(hidden, weight, targets_N, turn=native_pointwise.logits_to_errors)

    def exact(hidden: Tensor, weight: Tensor) -> Tensor:
        return reference.linear_nll(hidden, weight, targets_N.long())

    assert_same(fast, exact, [randn(9, 6, dtype=dtype) * 5, randn(n_words, 6, dtype=dtype, seed=1)])


@compiled
@pytest.mark.parametrize("dtype", IN_MEMORY)
def test_the_head_in_c_gives_words_that_are_not_kept_no_probability(dtype):
    kept_NB = torch.randint(256, (9, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    targets_N = reference.bits(kept_NB, 35).int().argmax(1)
    turn = native_pointwise.logits_to_errors

    def fast(hidden: Tensor, weight: Tensor) -> Tensor:
        return loss.linear_nll(hidden, weight, targets_N, kept_NB, turn=turn)

    def exact(hidden: Tensor, weight: Tensor) -> Tensor:
        return reference.linear_nll(hidden, weight, targets_N, kept_NB)

    assert_same(fast, exact, [randn(9, 6, dtype=dtype), randn(35, 6, dtype=dtype, seed=1)])


@compiled
@pytest.mark.parametrize("dtype", IN_MEMORY)
def test_strided_inputs_are_read_as_they_are(dtype):
    lengths = (6, 9)
    q, k, v = (each.transpose(0, 1).contiguous().transpose(0, 1) for each in ragged(lengths, 2, 2, 8, 8, dtype))
    assert not q.is_contiguous()
    assert_same(native_attention.causal_attention, reference.causal_attention, [q, k, v], lengths, 0.3)


@compiled
@pytest.mark.parametrize("dtype", IN_MEMORY)
def test_threads_change_no_bit(dtype):
    lengths, before = (90, 31, 64, 5, 77), torch.get_num_threads()
    tensors, norm = ragged(lengths, 4, 2, 16, 16, dtype), [randn(700, 64, dtype=dtype), randn(64, dtype=dtype, seed=1)]
    found = []
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            found.append(
                results(native_attention.causal_attention, tensors, lengths, 0.3)
                + results(native_pointwise.rms_norm, norm, 1e-6)
            )
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@compiled
@pytest.mark.parametrize("dtype", IN_MEMORY)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_comes_through(dtype, bad):
    q, k, v = ragged((20,), 1, 1, 8, 8, dtype)
    q[3, 0, 0] = bad
    wanted = reference.causal_attention(q, k, v, (20,), 0.3).isfinite()
    assert torch.equal(native_attention.causal_attention(q, k, v, (20,), 0.3).isfinite(), wanted)
    x = randn(4, 9, dtype=dtype)
    x[2, 8] = bad
    assert not native_pointwise.rms_norm(x, torch.ones(9), 1e-6)[2].isfinite().all()
    turn = native_pointwise.logits_to_errors
    assert not loss.linear_nll(x, torch.eye(9, dtype=dtype), torch.zeros(4).long(), turn=turn)[2].isfinite()


@compiled
def test_exp_keeps_float32s_accuracy_over_its_range():
    gate = torch.linspace(-86, 80, 4001)
    wanted = torch.nn.functional.silu(gate.double())
    got = native_pointwise.swiglu(gate, torch.ones_like(gate)).double()
    assert ((got - wanted) / wanted).abs()[gate != 0].max() < 4e-7
