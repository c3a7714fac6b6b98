"""Selection: chosen once, stated, overridable, and never silently something else."""

import logging

import pytest
import torch

from sobre.errors import ConfigError
from sobre.kernels import select
from sobre.kernels.native import build as native
from sobre.kernels.precision import choose_matmul_precision


def test_every_operation_has_a_reference_and_says_what_runs():
    for op in select.OPS:
        plain = "parts" if op in select.WHOLE else "reference"
        assert any(kernel.op == op and kernel.name == plain for kernel in select.KERNELS)
    select.swiglu(torch.ones(2, 4), torch.ones(2, 4))
    chosen = dict(line[:2] for line in select.describe())
    assert chosen["swiglu on cpu in float32"] == ("fused" if native.lacks() else "native")


def test_an_override_holds_inside_its_block_only():
    x, weight = torch.randn(2, 4), torch.ones(4)
    usual = select.choose("rms_norm", "cpu", torch.float32).name
    with select.override("rms_norm", "reference"):
        select.rms_norm(x, weight, 1e-6)
        assert select.choose("rms_norm", "cpu", torch.float32).name == "reference"
        with select.override("rms_norm", "fused"):
            assert select.choose("rms_norm", "cpu", torch.float32).name == "fused"
        assert select.choose("rms_norm", "cpu", torch.float32).name == "reference"
    assert select.choose("rms_norm", "cpu", torch.float32).name == usual != "reference"


def test_asking_for_an_unknown_kernel_lists_those_there_are():
    with pytest.raises(ConfigError, match="native, routed, grouped, reference"), select.override("moe_ffn", "magic"):
        pass
    with pytest.raises(ConfigError, match="known operations: .*moe_ffn"), select.override("moe", "reference"):
        pass


def test_a_kernel_asked_for_where_it_cannot_run_is_an_error_not_a_fallback():
    with select.override("moe_ffn", "routed"), pytest.raises(ConfigError, match="runs on cpu, not on cuda"):
        select.choose("moe_ffn", "cuda", torch.float32)
    assert select.choose("moe_ffn", "cuda", torch.float32).name == "grouped"


def test_the_chosen_float32_precision_is_accurate():
    before = torch.get_float32_matmul_precision()
    try:
        chosen = choose_matmul_precision()
        assert torch.get_float32_matmul_precision() == chosen
        left, right = torch.randn(200, 300), torch.randn(300, 100)
        exact = left.double() @ right.double()
        assert (left @ right - exact).norm() / exact.norm() < 2e-6
    finally:
        torch.set_float32_matmul_precision(before)


def test_an_inaccurate_medium_is_not_chosen(monkeypatch):
    errors = {"highest": 2e-7, "medium": 3e-3}
    monkeypatch.setattr("sobre.kernels.precision._worst_error", lambda name, operands: errors[name])
    before = torch.get_float32_matmul_precision()
    try:
        assert choose_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("op", ["take_rows", "weighted_swiglu", "sum_rows", "latent_decode", "draw"])
def test_a_gpu_without_triton_gets_the_next_best_and_is_told_why(op, monkeypatch):
    monkeypatch.setattr(select.importlib.util, "find_spec", lambda name: None)
    assert select.choose(op, "cuda", torch.float32).name != "triton"
    assert "triton needs triton, which is not installed" in select._choose(op, "cuda", torch.float32)[1]
    with pytest.raises(ConfigError, match="needs triton"), select.override(op, "triton"):
        select.choose(op, "cuda", torch.float32)
    monkeypatch.setattr(select.importlib.util, "find_spec", lambda name: object())
    assert select.choose(op, "cuda", torch.float32).name == "triton"
    assert select.choose(op, "cpu", torch.float32).name != "triton"


def test_decoding_is_in_bfloat16_where_pairs_of_it_are_multiplied(monkeypatch):
    for lacks, dtype in ((None, torch.bfloat16), ("needs a compiler", torch.float32)):
        monkeypatch.setattr(select.native, "lacks_bfloat16_products", lambda lacks=lacks: lacks)
        assert select.decoding_dtype("cpu", torch.bfloat16) == dtype
        assert select.decoding_dtype("cuda", torch.bfloat16) == torch.bfloat16
        assert select.decoding_dtype("cpu", torch.float32) == torch.float32


@pytest.mark.parametrize("device", select.ACCELERATORS)
def test_every_accelerator_has_a_kernel_for_every_operation_and_a_reason(device):
    for op in select.OPS:
        dtype = torch.float8_e4m3fn if op.startswith("fp8_") and op != "fp8_quantise" else torch.bfloat16
        kernel, reason = select._choose(op, device, dtype)
        assert reason
        assert kernel.refuses(device, dtype) is None


def test_what_runs_is_logged_with_the_reasons_of_what_does_not(caplog, monkeypatch):
    monkeypatch.setattr(select.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(select, "_chosen", {})
    with caplog.at_level(logging.INFO, logger=select.log.name):
        for _ in range(2):
            select._kernel("latent_decode", torch.empty(1, dtype=torch.bfloat16, device="meta"))
    (line,) = caplog.messages
    assert line.startswith("latent_decode on meta in torch.bfloat16: gathered (")
    assert "triton runs on cuda, xpu, not on meta" in line
    assert "native runs on cpu, not on meta" in line


def test_amds_cards_multiply_fp8_in_plain_torch(monkeypatch):
    monkeypatch.setattr(select.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    for op in ("fp8_quantise", "fp8_grouped_wgrad"):
        kernel, reason = select._choose(op, "cuda", torch.bfloat16)
        assert kernel.name == "reference"
        assert "AMD's MI300 has another" in reason
