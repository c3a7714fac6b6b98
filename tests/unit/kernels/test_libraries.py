"""Libraries that may be installed: what is asked of each is what its named version takes, and the result is ours.

None of them is here. Each stand-in below refuses what the library's own source refuses (file and commit are in the
header of the module that calls it) and computes by our specification; tests/gpu runs the real ones where they are.
"""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

sys.path.insert(0, str(Path(__file__).parent))
from flash_mla_stand_in import FlashMLA

import sobre.kernels
from sobre.errors import ConfigError
from sobre.kernels import deep_gemm, flash_mla, flashinfer, fp8, liger, reference, select, unfit
from sobre.kernels.fp8 import TILE, Quantised
from sobre.kernels.paged import Places


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def instead(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> list[tuple]:
    """The calls that go to a function of a Triton module."""
    calls: list[tuple] = []
    monkeypatch.setattr(sobre.kernels, module, SimpleNamespace(**{name: lambda *a: calls.append(a)}), raising=False)
    return calls


class DeepGEMM:
    """deep_gemm 2.6.1 on compute capability 9."""

    @staticmethod
    def check(pair: tuple[Tensor, Tensor], rows: int) -> Quantised:
        values, scales = pair
        n_rows, n_inner = values.shape[-2:]
        assert values.dtype == torch.float8_e4m3fn
        assert values.stride(-1) == 1
        assert scales.dtype == torch.float32
        assert scales.shape == (*values.shape[:-2], -(-n_rows // rows), -(-n_inner // TILE))
        if rows == TILE:
            assert scales.is_contiguous() or scales.mT.is_contiguous()
        return Quantised(values, scales, rows)

    def fp8_gemm_nt(
        self, a, b, d, c=None, recipe=None, recipe_a=None, recipe_b=None, compiled_dims="nk", disable_ue8m0_cast=False
    ) -> None:
        rows_a, rows_b, inner = recipe
        assert (rows_a, inner) == (1, TILE)
        assert d.stride(-1) == 1
        if rows_b == 1:
            assert c is not None
            assert d.dtype == torch.float32
        else:
            assert c is None
            assert d.dtype == torch.bfloat16
        found = fp8.product(self.check(a, 1), self.check(b, rows_b), torch.float32)
        d.copy_(found if c is None else found + c)

    def m_grouped_fp8_gemm_nt_contiguous(self, a, b, d, grouped_layout, recipe=None) -> None:
        left, rights = self.check(a, 1), self.check(b, recipe[1])
        assert recipe == (1, TILE, TILE)
        assert (d.dtype, grouped_layout.dtype) == (torch.bfloat16, torch.int32)
        assert grouped_layout.shape == (d.shape[0],)
        for begin in range(0, d.shape[0], TILE):
            rows, (expert,) = slice(begin, begin + TILE), set(grouped_layout[begin : begin + TILE].tolist())
            if expert >= 0:
                right = Quantised(rights.values_IK[expert], rights.scales[expert], TILE)
                d[rows] = fp8.product(Quantised(left.values_IK[rows], left.scales[rows], 1), right, d.dtype)


@pytest.fixture
def gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deep_gemm", DeepGEMM())


@pytest.mark.parametrize("n", [1, 70, 256])
def test_deep_gemm_multiplies_tiles_by_blocks_and_by_tiles(gemm, n):
    left = fp8.quantise(randn(n, 384), 1)
    blocks, tiles = (fp8.quantise(randn(256, 384, seed=1), rows) for rows in (TILE, 1))
    assert torch.equal(deep_gemm.product(left, blocks, torch.bfloat16), fp8.product(left, blocks, torch.bfloat16))
    assert torch.equal(deep_gemm.product(left, tiles, torch.float32), fp8.product(left, tiles))
    turned = fp8.quantise(randn(384, 256, seed=1), TILE).transposed()
    assert torch.equal(deep_gemm.product(left, turned, torch.bfloat16), fp8.product(left, turned, torch.bfloat16))


def test_deep_gemm_multiplies_blocks_of_rows_by_their_experts_and_leaves_zeros_where_there_is_none(gemm):
    left, rights = fp8.quantise(randn(4 * TILE, 256), 1), fp8.quantise(randn(3, 128, 256, seed=1), TILE)
    expert_X = torch.tensor([0, 0, 2, 3])
    found = deep_gemm.grouped_product(left, rights, expert_X, torch.bfloat16)
    assert_close(found, fp8.grouped_product(left, rights, expert_X, torch.bfloat16))
    assert found[3 * TILE :].abs().max() == 0
    assert found[2 * TILE : 3 * TILE].abs().max() > 0


@pytest.mark.parametrize(("o", "k", "dtype"), [(100, 256, "bfloat16"), (128, 200, "bfloat16"), (128, 256, "float32")])
def test_what_deep_gemm_does_not_take_goes_to_triton(monkeypatch, gemm, o, k, dtype):
    left, right = fp8.quantise(randn(TILE, k), 1), fp8.quantise(randn(1, o, k), TILE)
    calls = instead(monkeypatch, "triton_fp8", "product")
    deep_gemm.product(left, Quantised(right.values_IK[0], right.scales[0], TILE), getattr(torch, dtype))
    assert len(calls) == 1
    calls = instead(monkeypatch, "triton_fp8", "grouped_product")
    deep_gemm.grouped_product(left, right, torch.zeros(1, dtype=torch.long), getattr(torch, dtype))
    assert len(calls) == 1


class MLAWrapper:
    """flashinfer.mla.BatchMLAPagedAttentionWrapper 0.6.18, backends fa2 and fa3."""

    made: list["MLAWrapper"] = []

    def __init__(self, float_workspace_buffer: Tensor) -> None:
        assert float_workspace_buffer.dtype == torch.int8
        self.n_plans = 0
        self.made.append(self)

    def plan(
        self,
        qo_indptr,
        kv_indptr,
        kv_indices,
        kv_len_arr,
        num_heads,
        head_dim_ckv,
        head_dim_kpe,
        page_size,
        causal,
        sm_scale,
        q_data_type,
        kv_data_type,
    ) -> None:
        for host in (qo_indptr, kv_indptr, kv_len_arr):
            assert host.dtype == torch.int32
            assert host.device.type == "cpu"
        assert kv_indices.dtype == torch.int32
        assert kv_data_type in (torch.float16, torch.bfloat16)
        assert (head_dim_ckv, head_dim_kpe, causal) == (512, 64, False)
        assert qo_indptr.tolist() == list(range(len(kv_len_arr) + 1))
        self.plan_of = kv_indptr.tolist(), kv_indices, kv_len_arr.tolist(), page_size, sm_scale, q_data_type, num_heads
        self.n_plans += 1

    def run(self, q_nope: Tensor, q_pe: Tensor, ckv_cache: Tensor, kpe_cache: Tensor) -> Tensor:
        begins, indices, lengths, page_size, scale, dtype, n_heads = self.plan_of
        assert {x.dtype for x in (q_nope, q_pe, ckv_cache, kpe_cache)} == {dtype}
        assert all(x.stride(-1) == 1 for x in (q_nope, q_pe, ckv_cache, kpe_cache))
        assert (ckv_cache.shape[1:], kpe_cache.shape[1:]) == ((page_size, 512), (page_size, 64))
        assert q_nope.shape[1] == n_heads
        outs = []
        for row, length in enumerate(lengths):
            position = torch.arange(length)
            pages = indices[begins[row] + position // page_size].long()
            latent_SC = ckv_cache[pages, position % page_size].float()
            key_SR = kpe_cache[pages, position % page_size].float()
            scores_HS = (q_nope[row].float() @ latent_SC.T + q_pe[row].float() @ key_SR.T) * scale
            outs.append(scores_HS.softmax(-1) @ latent_SC)
        return torch.stack(outs).to(dtype)


def paged(lengths: tuple[int, ...], width: int, dtype: torch.dtype, block: int = 16) -> tuple[Tensor, Places]:
    """Cells in pages out of order, NaN beyond each sequence's end."""
    n_blocks = -(-max(lengths) // block)
    table_RB = torch.randperm(len(lengths) * n_blocks, generator=torch.Generator().manual_seed(1)).view(-1, n_blocks)
    cells_MC = torch.full((table_RB.numel() * block, width), torch.nan, dtype=dtype)
    for row, length in enumerate(lengths):
        position = torch.arange(length)
        cells_MC[table_RB[row, position // block] * block + position % block] = randn(length, width, seed=row).to(dtype)
    return cells_MC, Places(table_RB, torch.tensor(lengths), max(lengths), block)


@pytest.fixture
def mla(monkeypatch: pytest.MonkeyPatch) -> type[MLAWrapper]:
    monkeypatch.setitem(sys.modules, "flashinfer.mla", SimpleNamespace(BatchMLAPagedAttentionWrapper=MLAWrapper))
    monkeypatch.setattr(flashinfer, "WORKSPACE_BYTES", 16)
    monkeypatch.setattr(flashinfer, "_wrappers", {})
    monkeypatch.setattr(flashinfer, "_planned", {})
    monkeypatch.setattr(MLAWrapper, "made", [])
    return MLAWrapper


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_flashinfer_attends_to_the_pages_where_they_lie(mla, dtype):
    cells_MC, places = paged((1, 40, 17), 576 + 3, dtype)  # 3 numbers of an indexer's key
    q_RHC = randn(3, 2, 576, seed=9).to(dtype)
    found = flashinfer.latent_decode(q_RHC, cells_MC, places, 512, 0.1)
    assert_close(found, reference.latent_decode(q_RHC, cells_MC, places, 512, 0.1), rtol=1e-2, atol=1e-2)


def test_flashinfer_plans_once_for_all_layers_of_a_step(mla):
    q_RHC = randn(2, 2, 576).bfloat16()
    for lengths in ((5, 33), (6, 34)):
        cells_MC, places = paged(lengths, 576, torch.bfloat16)
        for _ in range(3):
            flashinfer.latent_decode(q_RHC, cells_MC, places, 512, 0.1)
    assert [wrapper.n_plans for wrapper in mla.made] == [2]


@pytest.mark.parametrize(("rank", "rope", "kept"), [(256, 64, "bfloat16"), (512, 32, "bfloat16"), (512, 64, "float16")])
def test_what_flashinfer_does_not_take_goes_to_triton(monkeypatch, mla, rank, rope, kept):
    calls = instead(monkeypatch, "triton_decode", "latent_decode")
    cells_MC, places = paged((3,), rank + rope, getattr(torch, kept))
    flashinfer.latent_decode(randn(1, 2, rank + rope).bfloat16(), cells_MC, places, rank, 0.1)
    assert len(calls) == 1
    assert not mla.made


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> FlashMLA:
    stand_in = FlashMLA()
    monkeypatch.setitem(sys.modules, "flash_mla", stand_in)
    monkeypatch.setattr(flash_mla, "_steps", {})
    return stand_in


@pytest.mark.parametrize("n_heads", [1, 16, 70])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_flash_mla_attends_to_the_pages_where_they_lie(flash, dtype, n_heads):
    cells_MC, places = paged((1, 40, 64, 200), 576 + 8, dtype, 64)  # 8 numbers of an indexer's key
    q_RHC = randn(4, n_heads, 576, seed=9).to(dtype)
    found = flash_mla.latent_decode(q_RHC, cells_MC, places, 512, 0.1)
    assert found.dtype == dtype
    assert_close(found, reference.latent_decode(q_RHC, cells_MC, places, 512, 0.1), rtol=1e-2, atol=1e-2)
    turned = q_RHC.transpose(0, 1).contiguous().transpose(0, 1)  # heads before rows in memory
    assert torch.equal(flash_mla.latent_decode(turned, cells_MC, places, 512, 0.1), found)


def test_flash_mla_plans_once_for_all_layers_of_a_step(flash):
    q_RHC = randn(2, 2, 576).bfloat16()
    for lengths in ((5, 65), (6, 66)):
        cells_MC, places = paged(lengths, 576, torch.bfloat16, 64)
        for _ in range(3):
            flash_mla.latent_decode(q_RHC, cells_MC, places, 512, 0.1)
    assert (len(flash.metas), flash.n_calls) == (2, 6)


@pytest.mark.parametrize(
    ("rank", "rope", "spare", "block", "kept", "why"),
    [
        (512, 64, 0, 16, "bfloat16", "pages of 64 entries, not of 16"),
        (256, 64, 0, 64, "bfloat16", "latents of 512 and rotary keys of 64, not of 256 and 64"),
        (512, 32, 0, 64, "bfloat16", "latents of 512 and rotary keys of 64, not of 512 and 32"),
        (512, 64, 0, 64, "float16", "entries of the queries' type, torch.bfloat16, not torch.float16"),
        (512, 64, 3, 64, "bfloat16", "entries that begin at multiples of 16 bytes"),
    ],
)
def test_what_flash_mla_does_not_take_goes_to_triton_and_is_said_once(
    monkeypatch, caplog, flash, rank, rope, spare, block, kept, why
):
    unfit.log_once.cache_clear()
    calls = instead(monkeypatch, "triton_decode", "latent_decode")
    cells_MC, places = paged((3,), rank + rope + spare, getattr(torch, kept), block)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            flash_mla.latent_decode(randn(1, 2, rank + rope).bfloat16(), cells_MC, places, rank, 0.1)
    assert len(calls) == 2
    assert not flash.n_calls
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"latent_decode: flash_mla takes {why}; triton runs instead"]


@pytest.mark.parametrize(
    ("capability", "chosen", "why"), [((9, 0), "flash_mla", "DeepSeek's own"), ((10, 0), "triton", "capability 9.0")]
)
def test_flash_mla_comes_first_where_it_is_made_for(monkeypatch, capability, chosen, why):
    there = {"flash_mla", "triton"}
    monkeypatch.setattr(flash_mla.importlib.util, "find_spec", lambda name: name if name in there else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    kernel, reason = select._choose("latent_decode", "cuda", torch.bfloat16)
    assert kernel.name == chosen
    assert why in reason
    assert select.choose("latent_decode", "cuda", torch.float32).name == "triton"


class LigerRMSNorm:
    """liger_kernel.ops.LigerRMSNormFunction 0.8.2: where each mode rounds."""

    @staticmethod
    def apply(X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
        assert not in_place
        unit = X.float() * torch.rsqrt(X.float().square().mean(-1, keepdim=True) + eps)
        return (unit * (offset + W)).to(X.dtype) if casting_mode == "gemma" else unit.to(X.dtype) * (offset + W)


class LigerSiLUMul:
    """liger_kernel.ops.LigerSiLUMulFunction 0.8.2."""

    @staticmethod
    def apply(a, b, gate_multiplier=1.0, down_multiplier=1.0):
        return torch.nn.functional.silu(a.float() * gate_multiplier).to(b.dtype) * b * down_multiplier


def test_liger_normalises_and_gates_as_the_reference(monkeypatch):
    stand_in = SimpleNamespace(LigerRMSNormFunction=LigerRMSNorm, LigerSiLUMulFunction=LigerSiLUMul)
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", stand_in)
    x, y, weight = randn(5, 33).bfloat16(), randn(5, 33, seed=1).bfloat16(), randn(33, seed=2)
    assert torch.equal(liger.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))
    assert_close(liger.swiglu(x, y), reference.swiglu(x, y), rtol=2**-7, atol=1e-6)


LIBRARIES = [
    ("rms_norm", "liger", "liger_kernel"),
    ("swiglu", "liger", "liger_kernel"),
    ("latent_decode", "flash_mla", "flash_mla"),
    ("latent_decode", "flashinfer", "flashinfer"),
    ("fp8_product", "deep_gemm", "deep_gemm"),
    ("fp8_grouped_product", "deep_gemm", "deep_gemm"),
]


@pytest.mark.parametrize(("op", "name", "package"), LIBRARIES)
def test_a_library_that_is_not_there_is_named_in_the_reason_and_cannot_be_asked_for(op, name, package):
    dtype = torch.float8_e4m3fn if op.startswith("fp8") else torch.bfloat16
    kernel, reason = select._choose(op, "cuda", dtype)
    assert kernel.name != name
    assert f"{name} needs {package}, which is not installed" in reason
    with pytest.raises(ConfigError, match=f"needs {package}"), select.override(op, name):
        select.choose(op, "cuda", dtype)


@pytest.mark.parametrize("op", ["rms_norm", "swiglu"])
def test_a_library_that_is_there_comes_first(monkeypatch, op):
    monkeypatch.setattr(liger.importlib.util, "find_spec", lambda name: object())
    assert select.choose(op, "cuda", torch.bfloat16).name == "liger"
    assert select.choose(op, "cpu", torch.bfloat16).name != "liger"
    assert select.choose(op, "npu", torch.bfloat16).name == "fused"
