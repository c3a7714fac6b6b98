"""Scales lie as torch's scaled product tells their kinds apart, whatever the shape; it is not called here."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import sobre.kernels
from sobre.kernels import fp8, scaled
from sobre.kernels.fp8 import TILE, Quantised


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TorchScaledMM:
    """torch._scaled_mm on Hopper: the kind of scales follows from their shapes and strides (ScaledBlas.cpp)."""

    @staticmethod
    def rows_of(x_IK: Tensor, scales: Tensor) -> int:
        n_rows, n_tiles = x_IK.shape[0], -(-x_IK.shape[1] // TILE)

        def lies(shape: tuple[int, int], strides: tuple[int, int]) -> bool:
            found = zip(shape, strides, scales.stride(), strict=True)
            return scales.shape == shape and all(size <= 1 or wanted == stride for size, wanted, stride in found)

        if lies((n_rows, n_tiles), (1, n_rows)):
            return 1
        if lies((-(-n_rows // TILE), n_tiles), (-(-n_tiles // 4) * 4, 1)):
            return TILE
        raise ValueError("Invalid scaling configuration")

    def __call__(self, a: Tensor, b: Tensor, *, scale_a: Tensor, scale_b: Tensor, out_dtype: torch.dtype) -> Tensor:
        assert a.stride(1) == 1
        assert b.stride(0) == 1
        assert self.rows_of(a, scale_a) == 1
        right = Quantised(b.t(), scale_b.t(), self.rows_of(b.t(), scale_b.t()))
        return fp8.product(Quantised(a, scale_a, 1), right, out_dtype)


@pytest.mark.parametrize("rows", [1, TILE])
@pytest.mark.parametrize("n_tiles", [2, 4, 5, 7])
def test_torch_tells_tiles_from_blocks_whatever_their_number(monkeypatch, n_tiles, rows):
    monkeypatch.setattr(torch, "_scaled_mm", TorchScaledMM())
    left, right = fp8.quantise(randn(256, n_tiles * TILE), 1), fp8.quantise(randn(384, n_tiles * TILE, seed=1), rows)
    assert torch.equal(scaled.product(left, right), fp8.product(left, right))
    if rows == TILE:
        turned = fp8.quantise(randn(n_tiles * TILE, 384, seed=1), TILE).transposed()
        assert torch.equal(scaled.product(left, turned), fp8.product(left, turned))


@pytest.mark.parametrize(("n", "o", "k"), [(100, 128, 256), (128, 100, 256), (128, 128, 200), (128, 128, 128)])
def test_what_torch_does_not_take_goes_to_triton(monkeypatch, n, o, k):
    calls: list[tuple] = []
    stand_in = SimpleNamespace(product=lambda *operands: calls.append(operands))
    monkeypatch.setattr(sobre.kernels, "triton_fp8", stand_in, raising=False)
    scaled.product(fp8.quantise(randn(n, k), 1), fp8.quantise(randn(o, k), 1), torch.bfloat16)
    assert [call[2] for call in calls] == [torch.bfloat16]
