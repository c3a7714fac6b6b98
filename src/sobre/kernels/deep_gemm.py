"""FP8 products by DeepGEMM, where it is installed: DeepSeek's own, for what `fp8.py` defines.

Written against github.com/deepseek-ai/DeepGEMM 2.6.1 (54e2261, csrc/apis/gemm.hpp), not run yet. On Hopper it takes
float32 scales and promotes the sums of every 128, in three forms that serve here:
- tiles times blocks, `recipe` (1, 128, 128): the result is bfloat16, and nothing may be added to it;
- tiles times tiles, `recipe` (1, 1, 128): the result is float32 and added to another;
- tiles times the blocks of each expert: `grouped_layout` names the expert of every row, -1 where it is none's, and such
  rows are not written; rows of one expert come in multiples of 128.
Blackwell's form rounds scales to powers of two, which is another product, so it is left out. The gradient of the
experts' weights stays with the Triton kernel: `k_grouped_fp8_gemm_nt_contiguous` wants the number of each expert's rows
on the host, which would wait for the device in every layer.

Shapes as in `fp8.py`.
"""

import importlib
import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sobre.kernels import scaled
from sobre.kernels.fp8 import TILE, Quantised
from sobre.kernels.unfit import log_once

BLOCKS, TILES = (1, 128, 128), (1, 1, 128)
"""DeepGEMM's word for what shares a scale: rows of the left and of the right operand, and the contraction."""


def product(left: Quantised, right: Quantised, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same function as `fp8.product`, for right operands whose sides are multiples of 128, and results that are
    bfloat16 of blocks or float32 of tiles (others: the Triton kernel)."""
    n_columns, n_inner = right.values_IK.shape
    takes = torch.bfloat16 if right.rows == TILE else torch.float32
    if n_columns % TILE or n_inner % TILE or dtype != takes:
        from sobre.kernels import triton_fp8

        log_once("fp8_product", "deep_gemm", _takes(takes, n_columns, n_inner, dtype), "triton")
        return triton_fp8.product(left, right, dtype)
    shape, device = (left.values_IK.shape[0], n_columns), left.values_IK.device
    if right.rows == TILE:
        out_IO = torch.empty(shape, dtype=dtype, device=device)
        _library().fp8_gemm_nt(_pair(left), _pair(right), out_IO, recipe=BLOCKS)
    else:
        out_IO = torch.zeros(shape, dtype=dtype, device=device)
        _library().fp8_gemm_nt(_pair(left), _pair(right), out_IO, c=out_IO, recipe=TILES)
    return out_IO


def grouped_product(
    left_PK: Quantised, rights_EOK: Quantised, expert_X: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The same function as `fp8.grouped_product`, for sides that are multiples of 128 and results in bfloat16 (others:
    the Triton kernel)."""
    n_experts, n_columns, n_inner = rights_EOK.values_IK.shape
    if n_columns % TILE or n_inner % TILE or dtype != torch.bfloat16:
        from sobre.kernels import triton_fp8

        log_once("fp8_grouped_product", "deep_gemm", _takes(torch.bfloat16, n_columns, n_inner, dtype), "triton")
        return triton_fp8.grouped_product(left_PK, rights_EOK, expert_X, dtype)
    out_PO = torch.zeros(left_PK.values_IK.shape[0], n_columns, dtype=dtype, device=left_PK.values_IK.device)
    none_X = torch.where(expert_X < n_experts, expert_X, -1)
    layout_P = none_X.to(torch.int32).repeat_interleave(TILE)
    _library().m_grouped_fp8_gemm_nt_contiguous(_pair(left_PK), _pair(rights_EOK), out_PO, layout_P, recipe=BLOCKS)
    return out_PO


def _takes(wanted: torch.dtype, n_columns: int, n_inner: int, dtype: torch.dtype) -> str:
    return f"takes sides that are multiples of {TILE} and gives {wanted} here, not {n_columns} x {n_inner} in {dtype}"


def _pair(operand: Quantised) -> tuple[Tensor, Tensor]:
    return operand.values_IK.contiguous(), operand.scales.contiguous()


def _library() -> Any:
    return importlib.import_module("deep_gemm")


@cache
def lacks() -> str | None:
    """What keeps DeepGEMM from being the specification's here, or None."""
    if not importlib.util.find_spec("deep_gemm"):
        return "needs deep_gemm, which is not installed"
    if reason := scaled.no_fp8_products():
        return reason
    if torch.cuda.get_device_capability()[0] != 9:
        return "needs compute capability 9: others round scales to powers of two"
    return scaled.differs(product, [(1, torch.float32), (TILE, torch.bfloat16)], "DeepGEMM")
