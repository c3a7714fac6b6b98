"""The Triton kernels are their references: under Triton's interpreter on a CPU, for real where there is a GPU.

Needs triton 3.7.1 or newer for the interpreter (`pip install 'sobre[kernels]'`); no shape is a multiple of a tile.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

HAS_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="triton is not installed: pip install 'sobre[kernels]'")

from sobre.kernels import (  # noqa: E402
    coded,
    experts,
    fp8,
    reference,
    triton_coded,
    triton_decode,
    triton_experts,
    triton_fp8,
    triton_sampling,
)
from sobre.kernels.paged import Places  # noqa: E402

DEVICE = "cuda" if HAS_GPU else "cpu"
DTYPES = [torch.float32, torch.bfloat16]
HALF = torch.bfloat16 if HAS_GPU else torch.float16
"""The interpreter multiplies bfloat16 matrices as if they were integers."""
CLOSE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float16: {"rtol": 5e-3, "atol": 5e-3},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_same(fast, exact, tensors: list[Tensor], *rest) -> None:
    """Outputs and gradients under one cotangent."""
    found = []
    for call in (fast, exact):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        out = call(*leaves, *rest)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, randn(*out.shape, seed=9, dtype=out.dtype))])
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, **CLOSE[theirs.dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [5, 1030])
def test_rows_go_to_their_experts_and_back(dtype, width):
    rows = experts.order(torch.tensor([[2, 0], [2, 1], [0, 2]], device=DEVICE), 4)
    assert_same(triton_experts.take_rows, reference.take_rows, [randn(3, width, seed=0, dtype=dtype)], *rows[1:3])
    assert_same(triton_experts.sum_rows, reference.sum_rows, [randn(6, width, seed=1, dtype=dtype)], *rows[1:3])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [3, 1030])
def test_swiglu_times_a_weight(dtype, width):
    tensors = [randn(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(3, width), (3, width), (3,)])]
    if width > 1000:
        tensors[0] = tensors[0] * 0.1  # so that the sum over a row stays of the size of its rounding
    assert_same(triton_experts.weighted_swiglu, reference.weighted_swiglu, [x * 0.5 for x in tensors])


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(
    ("n_heads", "rank", "rope", "lengths", "block"),
    [(2, 16, 4, (5,), 16), (5, 40, 12, (1, 130, 33), 16), (17, 24, 8, (64, 95), 32)],
)
def test_latent_attention_over_pages(dtype, n_heads, rank, rope, lengths, block):
    n_blocks = -(-max(lengths) // block)
    table_RB = torch.randperm(len(lengths) * n_blocks, generator=torch.Generator().manual_seed(1)).view(-1, n_blocks)
    cells_MC = randn(table_RB.numel() * block, rank + rope + 3, seed=2, dtype=dtype)  # 3 numbers of an indexer's key
    places = Places(table_RB.to(DEVICE), torch.tensor(lengths, device=DEVICE), max(lengths), block)
    for row, length in enumerate(lengths):  # what lies beyond a sequence's end must not be read
        last = table_RB[row, (length - 1) // block] * block
        cells_MC[last + (length - 1) % block + 1 : last + block] = torch.nan
        for beyond in table_RB[row, (length - 1) // block + 1 :].tolist():
            cells_MC[beyond * block : (beyond + 1) * block] = torch.nan
    q_RHC = randn(len(lengths), n_heads, rank + rope, seed=3, dtype=dtype)
    ours = triton_decode.latent_decode(q_RHC, cells_MC, places, rank, 0.3)
    assert_close(ours, reference.latent_decode(q_RHC, cells_MC, places, rank, 0.3), **CLOSE[dtype])


def test_a_context_split_among_programs_is_attended_to_as_a_whole(monkeypatch):
    cells_MC, q_RHC = randn(320, 20, seed=2), randn(1, 3, 20, seed=3)
    places = Places(torch.arange(20, device=DEVICE)[None], torch.tensor([301], device=DEVICE), 301, 16, 0)
    exact = reference.latent_decode(q_RHC, cells_MC, places, 16, 0.3)
    for programs in (1, 3, 1000):
        monkeypatch.setattr(triton_decode, "PROGRAMS", programs)
        assert_close(triton_decode.latent_decode(q_RHC, cells_MC, places, 16, 0.3), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_words", [50, 2500])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_same_number_draws_the_same_token(n_words, scaled):
    logits_RV = randn(9, n_words, seed=0) * 3
    logits_RV[2, 10:] = -torch.inf
    uniforms_R = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    uniforms_R[:3] = torch.tensor([0.0, 1 - 2**-53, 1 - 2**-53], dtype=torch.float64)
    scale_R1 = randn(9, 1, seed=5).abs() + 0.5 if scaled else None
    tokens_R, logprobs_R = triton_sampling.draw(logits_RV, scale_R1, uniforms_R)
    theirs_R, their_logprobs_R = reference.draw(logits_RV, scale_R1, uniforms_R)
    assert tokens_R.tolist() == theirs_R.tolist()
    assert_close(logprobs_R, their_logprobs_R, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_logits_that_are_no_numbers_are_told_by_their_probability():
    logits_RV = randn(2, 40, seed=0)
    logits_RV[1, 7] = torch.nan
    tokens_R, logprobs_R = triton_sampling.draw(logits_RV, None, torch.full((2,), 0.5, dtype=torch.float64).to(DEVICE))
    assert logprobs_R.isnan().tolist() == [False, True]
    assert 0 <= int(tokens_R[1]) < 40


def at_the_edge(dtype: torch.dtype) -> Tensor:
    """Zeros, denormals, infinities and NaN among numbers of many sizes; neither side a multiple of a tile."""
    x_IK = randn(37, 300, seed=1) * torch.logspace(-6, 3, 300, device=DEVICE)
    x_IK[3], x_IK[5, :130], x_IK[11, 5] = 0.0, 1e-42, 1e-30
    x_IK[7, 10], x_IK[9, 200] = torch.inf, torch.nan
    return x_IK.to(dtype)


@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 128])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_tiles_have_the_scales_of_the_specification_and_its_numbers(dtype, rows, power_of_two):
    edge = at_the_edge(dtype)
    for x_IK in (edge, edge.t(), torch.stack([edge, edge * 0.5]), torch.stack([edge * 2.0, edge]).mT):
        ours, theirs = (quantise(x_IK, rows, power_of_two) for quantise in (triton_fp8.quantise, fp8.quantise))
        finite = theirs.scales.isfinite()
        assert_close(ours.scales[finite], theirs.scales[finite], rtol=0, atol=0)
        assert ours.scales[~finite].isnan().all()
        assert_close(ours.dequantised(), theirs.dequantised(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("rows", [1, 128])
def test_products_in_tiles_are_the_specifications(rows):
    left, right = fp8.quantise(randn(70, 300, seed=1), 1), fp8.quantise(randn(150, 300, seed=2), rows)
    assert_close(triton_fp8.product(left, right), fp8.product(left, right), rtol=1e-4, atol=1e-3)
    if rows == 128:
        turned = fp8.quantise(randn(300, 40, seed=2), 128).transposed()
        assert_close(triton_fp8.product(left, turned), fp8.product(left, turned), rtol=1e-4, atol=1e-3)


EXPERTS_OF_BLOCKS = [[0, 0, 2, 4], [1, 4, 4], [4, 4]]
"""Of four experts; 4 is none."""


@pytest.mark.parametrize("expert_X", EXPERTS_OF_BLOCKS)
def test_grouped_products_in_tiles_are_the_specifications(expert_X):
    blocks = torch.tensor(expert_X, device=DEVICE)
    left = fp8.quantise(randn(128 * len(expert_X), 300, seed=1), 1)
    rights = fp8.quantise(randn(4, 40, 300, seed=2), 128)
    ours = triton_fp8.grouped_product(left, rights, blocks)
    assert_close(ours, fp8.grouped_product(left, rights, blocks), rtol=1e-4, atol=1e-3)
    assert ours[128 * expert_X.index(4) :].abs().max() == 0
    turned = fp8.quantise(randn(4, 300, 40, seed=2), 128).transposed()
    wanted = fp8.grouped_product(left, turned, blocks)
    assert_close(triton_fp8.grouped_product(left, turned, blocks), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("expert_X", EXPERTS_OF_BLOCKS)
def test_gradients_of_experts_weights_in_tiles_are_the_specifications(expert_X):
    blocks = torch.tensor(expert_X, device=DEVICE)
    left, right = (fp8.quantise(randn(n, 128 * len(expert_X), seed=n), 1) for n in (70, 150))
    ours = triton_fp8.grouped_wgrad(left, right, blocks, 4)
    assert ours.shape == (4, 70, 150)
    assert_close(ours, fp8.grouped_wgrad(left, right, blocks, 4), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper():
    """The whole way to machine code, which needs no GPU."""
    script = Path(__file__).with_name("compile_for_hopper.py")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 14


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("n", [1, 19, 70])
@pytest.mark.parametrize(("n_in", "n_out"), [(32, 7), (224, 48)])
def test_a_product_with_codes_is_that_of_what_they_stand_for(bits, n, n_in, n_out):
    codes_OI, scales = coded.rounded(randn(n_out, n_in, seed=0), bits)
    x_NI = randn(n, 2 * n_in, seed=1, dtype=HALF)[:, ::2]
    found = triton_coded.linear(x_NI, triton_coded.pack(scales, codes_OI, bits))
    wanted = x_NI.double() @ coded.multiplied_out(codes_OI, scales, bits, torch.float64).T
    assert found.dtype == HALF
    assert (found - wanted).norm() / wanted.norm() < 5e-3


def test_eight_bits_take_any_width():
    codes_OI, scales = coded.rounded(randn(5, 45, seed=0), "int8")
    x_NI = randn(3, 45, seed=1, dtype=HALF)
    found = triton_coded.linear(x_NI, triton_coded.pack(scales, codes_OI, "int8"))
    wanted = x_NI.double() @ coded.multiplied_out(codes_OI, scales, "int8", torch.float64).T
    assert (found - wanted).norm() / wanted.norm() < 5e-3


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("n", [1, 30, 140])  # two tiles of one expert; then multiplied out
def test_experts_in_codes_are_those_of_what_they_stand_for(bits, n):
    d, f, n_experts = 64, 96, 6
    chosen = torch.rand(n, n_experts, generator=torch.Generator().manual_seed(3))
    experts_NA = (chosen + torch.tensor([9.0, 0, 0, -9, 0, 0])).topk(3).indices.to(DEVICE)  # 0 by all, 3 by none
    x_ND, weights_NA = randn(n, d, seed=0, dtype=HALF), randn(n, 3, seed=1)
    rounded = [
        [coded.rounded(weight, bits) for weight in randn(n_experts, *size, seed=seed) * 0.2]
        for seed, size in enumerate(((f, d), (f, d), (d, f)), 2)
    ]
    packed = [coded.stacked([triton_coded.pack(s, c, bits) for c, s in of_all]) for of_all in rounded]
    wide = [torch.stack([coded.multiplied_out(c, s, bits, torch.float64) for c, s in of_all]) for of_all in rounded]
    found = triton_coded.experts(x_ND, experts_NA, weights_NA, *packed)
    wanted = reference.moe_ffn(x_ND.double(), experts_NA, weights_NA.double(), *wide)
    assert (found - wanted).norm() / wanted.norm() < 1e-2


def test_tiles_cover_every_row_once_and_belong_to_one_expert():
    counts = torch.tensor([0, 1, 16, 17, 0, 33])
    ends_E = counts.cumsum(0).int()
    cut = triton_coded.tiles(ends_E, int(counts.sum()))
    rows = [
        (expert, row)
        for expert, begin, end in zip(*(part.tolist() for part in cut), strict=True)
        for row in range(begin, end)
    ]
    assert [row for _, row in rows] == list(range(67))
    assert [expert for expert, _ in rows] == [e for e, n in enumerate(counts.tolist()) for _ in range(n)]
    assert int((cut.end_T - cut.begin_T).max()) <= triton_coded.ROWS
