"""FP8: numbers against a rounding of our own, products against float64, and what must not happen at the edges."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sobre.kernels import fp8, reference
from sobre.kernels.fp8_linear import filled, fp8_grouped_linear, fp8_linear, fp8_moe_ffn

SHAPES = [(1, 1), (3, 127), (130, 128), (257, 300)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def e4m3(value: float) -> float:
    """The nearest number with 3 bits after the point and exponents from -6 to 8, ties to even."""
    if value == 0:
        return 0.0
    step = 2.0 ** (max(math.floor(math.log2(abs(value))), -6) - 3)
    return min(448.0, max(-448.0, round(value / step) * step))


def gap(got: Tensor, wanted: Tensor) -> float:
    return float((got.detach().double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-300))


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("rows", [1, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tile_is_divided_by_its_scale_and_rounded_to_e4m3(shape, rows, power_of_two):
    x_IK = randn(*shape) * torch.logspace(-6, 3, shape[1])
    found = fp8.quantise(x_IK, rows, power_of_two)
    assert found.values_IK.shape == shape
    assert found.scales.shape == (-(-shape[0] // rows), -(-shape[1] // 128))
    for j in range(found.scales.shape[0]):
        for q in range(found.scales.shape[1]):
            tile = (slice(j * rows, (j + 1) * rows), slice(q * 128, (q + 1) * 128))
            scale = float(x_IK[tile].abs().max()) / 448
            if power_of_two:
                scale = 2.0 ** math.ceil(math.log2(scale))
            assert float(found.scales[j, q]) == pytest.approx(scale, rel=1e-6)
            divided = (x_IK[tile] / found.scales[j, q]).flatten()[:40].tolist()
            assert found.values_IK[tile].float().flatten()[:40].tolist() == [e4m3(value) for value in divided]


def test_the_largest_of_a_tile_is_kept_and_powers_of_two_are_exact():
    x_IK = 2.0 ** torch.arange(-8, 8).float().repeat(2, 1)
    found = fp8.quantise(x_IK, 1, True)
    assert torch.equal(found.dequantised(), x_IK)
    assert torch.equal(found.scales.log2(), found.scales.log2().round())
    plain = fp8.quantise(randn(5, 100), 1)
    assert torch.equal(plain.values_IK.float().abs().amax(1), torch.full((5,), 448.0))


def test_a_scale_that_is_a_power_of_two_stays():
    x_11 = torch.tensor([[448.0 * 2.0**-3]])
    assert fp8.quantise(x_11, 1, True).scales.tolist() == [[2.0**-3]]
    assert fp8.quantise(x_11 * 1.001, 1, True).scales.tolist() == [[2.0**-2]]


@pytest.mark.parametrize("power_of_two", [False, True])
def test_zeros_stay_zeros_and_tiny_gradients_keep_their_digits(power_of_two):
    x_IK = torch.zeros(3, 200)
    x_IK[1] = randn(200) * 1e-12
    x_IK[2, 0] = 1e-40  # a denormal of float32: below the smallest scale's reach
    found = fp8.quantise(x_IK, 1, power_of_two)
    assert found.scales.isfinite().all()
    assert found.dequantised()[0].abs().max() == 0
    assert gap(found.dequantised()[1], x_IK[1]) < 0.04
    assert found.dequantised().isfinite().all()
    assert fp8.product(found, found).isfinite().all()


def test_small_numbers_beside_large_ones_use_the_denormals_and_then_vanish():
    x_1K = torch.tensor([[448.0, 2.0**-9, 2.0**-10, 3 * 2.0**-11]])
    assert fp8.quantise(x_1K, 1).dequantised().tolist() == [[448.0, 2.0**-9, 0.0, 2.0**-9]]


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_makes_its_tile_nan_and_no_other(bad, power_of_two):
    x_IK = randn(2, 256)
    x_IK[0, 130] = bad
    found = fp8.quantise(x_IK, 1, power_of_two).dequantised()
    assert found[0, 128:].isnan().all()
    assert found[0, :128].isfinite().all()
    assert found[1].isfinite().all()
    assert fp8_linear(x_IK, torch.ones(3, 256), power_of_two=power_of_two)[0].isnan().all()


@pytest.mark.parametrize("right_rows", [1, 128])
@pytest.mark.parametrize(("i", "o", "k"), [(1, 1, 1), (3, 130, 129), (200, 5, 384), (4, 7, 0)])
def test_the_product_is_that_of_the_numbers_they_stand_for(i, o, k, right_rows):
    left, right = fp8.quantise(randn(i, k), 1), fp8.quantise(randn(o, k, seed=1), right_rows)
    exact = left.dequantised().double() @ right.dequantised().double().t()
    found = fp8.product(left, right)
    assert found.dtype == torch.float32
    assert gap(found, exact) < 1e-6
    assert torch.equal(fp8.product(left, right, torch.bfloat16), found.bfloat16())


def test_blocks_transpose_exactly_and_tiles_refuse():
    found = fp8.quantise(randn(200, 300), 128)
    assert torch.equal(found.transposed().dequantised(), found.dequantised().t())
    with pytest.raises(AssertionError):
        fp8.quantise(randn(4, 4), 1).transposed()


def dequantised(x: Tensor, rows: int, power_of_two: bool) -> Tensor:
    return fp8.quantise(x, rows, power_of_two).dequantised().double()


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize(("n", "d", "f"), [(1, 1, 1), (5, 130, 200), (300, 64, 129)])
def test_the_three_products_of_a_linear_map(n, d, f, power_of_two):
    x, weight, dy = randn(n, d).requires_grad_(), randn(f, d, seed=1).requires_grad_(), randn(n, f, seed=2)
    y = fp8_linear(x, weight, power_of_two=power_of_two)
    y.backward(dy)
    wide = partial(dequantised, power_of_two=power_of_two)
    weight_FD = wide(weight.detach(), 128)
    assert gap(y, wide(x.detach(), 1) @ weight_FD.t()) < 1e-6
    assert gap(x.grad, wide(dy, 1) @ weight_FD) < 1e-6
    kept = wide(x.detach(), 1).float() if power_of_two else x.detach()
    assert gap(weight.grad, wide(dy.t(), 1) @ wide(kept.t(), 1).t()) < 1e-6


def test_bfloat16_activations_over_float32_masters():
    x, weight = randn(9, 40).bfloat16().requires_grad_(), randn(12, 40, seed=1).requires_grad_()
    y = fp8_linear(x, weight)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize(("power_of_two", "bytes_each"), [(False, 4), (True, 1)])
def test_the_input_is_kept_in_a_byte_where_that_loses_nothing(power_of_two, bytes_each):
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    x, weight = randn(256, 128).requires_grad_(), randn(128, 128, seed=1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fp8_linear(x, weight, power_of_two=power_of_two)
    assert max(sizes) == 256 * 128 * bytes_each


def test_with_powers_of_two_the_tokens_axis_is_quantised_again_without_loss():
    x_ND = randn(128, 128)
    first = fp8.quantise(x_ND, 1, True).dequantised()
    again = fp8.quantise(first.t(), 1, True).dequantised().t()
    lost = (again != first) & (first.abs() >= first.abs().amax(0) * 2.0**-14)
    assert not lost.any()


def test_an_outlier_in_one_gradient_leaves_the_other_tokens_alone():
    """Why dgrad needs tiles of one row: in 128 x 128 blocks one large row erases the others (V3, appendix B.2)."""
    dy_NF = randn(4, 128)
    dy_NF[0] *= 1e6
    assert gap(dequantised(dy_NF, 1, False)[1:], dy_NF[1:]) < 0.04
    assert gap(dequantised(dy_NF, 128, False)[1:], dy_NF[1:]) > 0.9


def test_several_matrices_are_quantised_each_by_itself():
    x_EIK = randn(3, 130, 200) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    for rows in (1, 128):
        found = fp8.quantise(x_EIK, rows)
        each = [fp8.quantise(x_IK, rows) for x_IK in x_EIK]
        assert torch.equal(found.dequantised(), torch.stack([x.dequantised() for x in each]))
        assert torch.equal(found.scales, torch.stack([x.scales for x in each]))
    assert torch.equal(found.transposed().dequantised(), found.dequantised().mT)


def routed(counts: list[int], n_active: int = 1) -> Tensor:
    """experts_NA: tokens whose choices come up as often as `counts` say."""
    chosen = torch.tensor([expert for expert, count in enumerate(counts) for _ in range(count)], dtype=torch.long)
    return chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(3))].view(-1, n_active)


@pytest.mark.parametrize("counts", [[3, 0, 130], [128, 256, 0, 0], [0, 0, 6], [0, 0, 0], [127, 129, 1, 1]])
def test_every_copy_has_a_row_in_a_block_of_its_expert_and_no_block_has_two(counts):
    experts_NA = routed(counts, 2 if sum(counts) % 2 == 0 else 1)
    n_tokens, rows = len(experts_NA), filled(experts_NA, len(counts))
    assert rows.token_P.shape == (128 * len(rows.expert_X),)
    blocks = [-(-count // 128) for count in counts]
    wanted = [expert for expert, n in enumerate(blocks) for _ in range(n)]
    assert rows.expert_X.tolist() == wanted + [len(counts)] * (len(rows.expert_X) - len(wanted))
    assert len(rows.expert_X) > len(wanted)
    place_NA = rows.place_NA[:-1]
    assert torch.equal(rows.token_P[place_NA], torch.arange(n_tokens)[:, None].expand_as(experts_NA))
    assert torch.equal(rows.expert_X[place_NA // 128], experts_NA)
    assert int((rows.token_P < n_tokens).sum()) == sum(counts)
    assert (rows.token_P[rows.place_NA[-1]] == n_tokens).all()


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("counts", [[3, 0, 130], [0, 0, 5], [0, 0, 0]])
def test_grouped_rows_are_linear_maps_of_each_expert(counts, power_of_two):
    experts_N1 = routed(counts)
    rows = filled(experts_N1, 3)
    x, weight = randn(sum(counts), 150).requires_grad_(), randn(3, 20, 150, seed=1).requires_grad_()
    dy = randn(sum(counts), 20, seed=2)
    place_N = rows.place_NA[:-1, 0]
    x_PD = x.new_zeros(len(rows.token_P), 150).index_copy(0, place_N, x)
    y_PF = fp8_grouped_linear(x_PD, weight, rows.expert_X, power_of_two=power_of_two)
    assert y_PF[rows.token_P == sum(counts)].abs().max() == 0
    y_PF[place_N].backward(dy)
    for expert in range(3):
        chosen_N = rows.place_NA[:-1, 0].argsort() if sum(counts) else place_N
        mine_N = chosen_N[experts_N1[chosen_N, 0] == expert]  # in the order of their rows
        mine, theirs = x.detach()[mine_N].requires_grad_(), weight.detach()[expert].requires_grad_()
        y = fp8_linear(mine, theirs, power_of_two=power_of_two)
        y.backward(dy[mine_N])
        assert_close(y_PF[place_N[mine_N]], y, rtol=1e-5, atol=1e-5)
        assert_close(x.grad[mine_N], mine.grad, rtol=1e-5, atol=1e-5)
        assert_close(weight.grad[expert], theirs.grad, rtol=1e-5, atol=1e-5)


def test_experts_in_fp8_are_near_the_experts():
    x, experts_NA = randn(50, 64), torch.arange(100).view(50, 2) % 7
    weights_NA = torch.full((50, 2), 0.5)
    stacked = randn(7, 24, 64, seed=1), randn(7, 24, 64, seed=2), randn(7, 64, 24, seed=3)
    exact = reference.moe_ffn(x, experts_NA, weights_NA, *stacked)
    found = fp8_moe_ffn(x, experts_NA, weights_NA, *stacked)
    assert 0.01 < gap(found, exact) < 0.08
    assert fp8_moe_ffn(x[:0], experts_NA[:0], weights_NA[:0], *stacked).shape == (0, 64)


def test_experts_in_fp8_learn_as_if_each_were_alone():
    """What fills their rows up is in no scale and no gradient."""
    x, experts_NA = randn(7, 40).requires_grad_(), torch.tensor([[2, 0]] * 3 + [[0, 1]] * 4)
    weights_NA = randn(7, 2, seed=5).sigmoid().requires_grad_()
    stacked = [randn(3, *shape, seed=i).requires_grad_() for i, shape in enumerate([(24, 40), (24, 40), (40, 24)])]
    leaves, dy_ND = [x, weights_NA, *stacked], randn(7, 40, seed=6)
    found = torch.autograd.grad(fp8_moe_ffn(x, experts_NA, weights_NA, *stacked), leaves, dy_ND)
    y_ND = torch.zeros(7, 40)
    for expert in range(3):
        token_M, a_M = (experts_NA == expert).nonzero(as_tuple=True)
        gate, up, down = (weight[expert] for weight in stacked)
        gate_MF, up_MF = fp8_linear(x[token_M], gate), fp8_linear(x[token_M], up)
        inner_MF = reference.weighted_swiglu(gate_MF, up_MF, weights_NA[token_M, a_M])
        y_ND = y_ND.index_add(0, token_M, fp8_linear(inner_MF, down))
    for ours, alone in zip(found, torch.autograd.grad(y_ND, leaves, dy_ND), strict=True):
        assert_close(ours, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_token_that_is_not_finite_spoils_its_own_answer_and_the_gradients_of_its_experts(bad):
    """So that the step is refused; the other tokens and experts keep theirs."""
    x, experts_NA = randn(6, 40), torch.tensor([[0], [0], [1], [1], [2], [2]])
    x[0, 3] = bad
    stacked = [randn(3, *shape, seed=i).requires_grad_() for i, shape in enumerate([(24, 40), (24, 40), (40, 24)])]
    found = fp8_moe_ffn(x, experts_NA, torch.ones(6, 1), *stacked)
    assert found.isnan().any(1).tolist() == [True, *[False] * 5]
    for gradient in torch.autograd.grad(found.sum(), stacked):
        assert gradient.isnan().flatten(1).any(1).tolist() == [True, False, False]
