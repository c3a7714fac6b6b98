"""On an accelerator: what runs there equals the CPU's reference. Skipped where there is none."""

import warnings
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from sobre.engine import static
from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.kernels import coded, fp8, reference, scaled, select
from sobre.kernels.fp8 import TILE, Quantised
from sobre.kernels.paged import Places
from sobre.models.config import DenseConfig, GQAConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.models.low_precision import set_precision
from sobre.models.quantised import quantise
from sobre.models.regions import compile_layers
from sobre.models.step import StepInput
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.train.batch import from_rows
from sobre.train.losses import next_token
from sobre.train.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
]
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


SMALL = ModelConfig(
    vocab_size=61,
    max_len=64,
    d_model=32,
    n_layers=2,
    attention=MLAConfig(n_heads=2, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=8),
    ffn=MoEConfig(n_experts=4, n_active=2, d_expert=16, d_ff=40),
)


def small(device: str) -> Decoder:
    model = Decoder(SMALL)
    model.init_weights(0)
    return model.to(device)


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lengths", [(1, 1), (37, 130, 5)])
def test_causal_attention_equals_the_reference(lengths):
    q, k, v = (
        randn(sum(lengths), heads, width, seed=seed) for seed, (heads, width) in enumerate([(4, 48), (2, 48), (2, 32)])
    )
    there = select.causal_attention(q.cuda(), k.cuda(), v.cuda(), lengths, 0.1)
    assert_close(there.cpu(), reference.causal_attention(q, k, v, lengths, 0.1), **CLOSE)


def test_the_experts_equal_the_reference():
    x_ND, experts_NA = randn(50, 32, seed=0), torch.arange(100).view(50, 2) % 7
    weights_NA = torch.full((50, 2), 0.5)
    gate, up, down = randn(7, 24, 32, seed=1), randn(7, 24, 32, seed=2), randn(7, 32, 24, seed=3)
    inputs = (x_ND, experts_NA, weights_NA, gate, up, down)
    there = select.moe_ffn(*(tensor.cuda() for tensor in inputs))
    assert_close(there.cpu(), reference.moe_ffn(*inputs), **CLOSE)


def test_a_forward_and_its_gradients_equal_the_cpus():
    found = []
    for device in ("cpu", "cuda"):
        model = small(device).train()
        step = StepInput(torch.arange(30, device=device) % 61, lengths=(13, 17))
        logits_NV = model.logits(model(step).hidden_ND)
        logits_NV.logsumexp(-1).sum().backward()
        found.append((logits_NV.detach().cpu(), model.embed.weight.grad.cpu()))
    assert_close(found[1][0], found[0][0], **CLOSE)
    assert_close(found[1][1], found[0][1], **CLOSE)


def test_steps_there_lose_what_steps_here_lose():
    batch = from_rows(torch.arange(68).view(4, 17) % 61)
    losses = []
    for device in ("cpu", "cuda"):
        model = small(device).train()
        names = dict(model.named_parameters())
        optimizer = Optimizer(names, roles(names), OptimConfig())
        steps = [train_step(model, optimizer, [batch, batch], next_token, lr_scale=1.0, clip=1.0) for _ in range(4)]
        losses.append([step.loss for step in steps])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[1][3] < losses[1][0]


@pytest.mark.parametrize("precision", ["auto", "fp8", "fp8-power-of-two"])
def test_a_training_step_makes_the_host_wait_once(precision):
    """As test_second_device.py counts it; here torch warns of every wait."""
    if precision != "auto" and (reason := scaled.no_fp8_products()):
        pytest.skip(reason)
    if precision == "auto" and torch.cuda.get_device_capability() not in [(9, 0), (10, 0)]:
        pytest.skip("torch's grouped product copies the counts of the experts to the host here")
    model = Decoder(SMALL, dtype=torch.bfloat16)
    model.init_weights(0)
    model.to("cuda").train()
    set_precision(model, precision)
    names = dict(model.named_parameters())
    optimizer = Optimizer(names, roles(names), OptimConfig())
    batch = from_rows(torch.arange(68).view(4, 17) % 61)
    for _ in range(2):  # the second one allocates and compiles nothing
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                train_step(model, optimizer, [batch, batch], next_token, lr_scale=1.0, clip=1.0)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
    assert len(waits) == 1, waits


def test_an_engine_there_draws_the_tokens_that_it_draws_here():
    requests = [
        Request(str(i), tuple(range(3 + i, 20 + i)), SamplingParams(max_tokens=20, seed=i, top_p=1.0 - 0.1 * (i % 2)))
        for i in range(5)
    ]
    here, there = (
        Engine(small(device).eval(), EngineConfig(max_batch=4), run_seed=7).generate(requests)
        for device in ("cpu", "cuda")
    )
    same = sum(a == b for x, y in zip(here, there, strict=True) for a, b in zip(x.token_ids, y.token_ids, strict=True))
    assert same >= 95  # of 100: rounding may flip a draw, and all that follows it


@pytest.mark.parametrize(("n", "o", "k"), [(256, 384, 512), (70, 150, 300)])
@pytest.mark.parametrize("rows", [1, 128])
def test_fp8_there_is_the_specification(n, o, k, rows):
    if reason := scaled.no_fp8_products():
        pytest.skip(reason)
    x, w = randn(n, k, seed=1), randn(o, k, seed=2)
    left, right = select.fp8_quantise(x.cuda(), 1, False), select.fp8_quantise(w.cuda(), rows, False)
    assert_close(left.dequantised().cpu(), fp8.quantise(x, 1).dequantised(), rtol=0, atol=0)
    wanted = fp8.product(fp8.quantise(x, 1), fp8.quantise(w, rows))
    found = select.fp8_product(left, right, torch.float32).cpu()
    assert (found - wanted).norm() / wanted.norm() < 1e-3


def quantised(*shape: int, rows: int, seed: int) -> tuple[Quantised, Quantised]:
    """The same numbers on the CPU and there."""
    here = fp8.quantise(randn(*shape, seed=seed), rows)
    return here, Quantised(here.values_IK.cuda(), here.scales.cuda(), rows)


def gap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float().cpu() - wanted.float()).norm() / wanted.float().norm())


FP8_KERNELS = [(k.op, k.name) for k in select.KERNELS if k.op.startswith("fp8_") and k.name != "reference"]


@pytest.mark.parametrize(("o", "k"), [(384, 512), (256, 640), (150, 300)])
@pytest.mark.parametrize("name", [name for op, name in FP8_KERNELS if op == "fp8_product"])
def test_every_product_in_fp8_there_is_the_specification(name, o, k):
    left, left_there = quantised(256, k, rows=1, seed=1)
    with select.override("fp8_product", name):
        if reason := refusal("fp8_product", name, torch.float8_e4m3fn):
            pytest.skip(reason)
        for rows, dtype in [(1, torch.float32), (TILE, torch.bfloat16)]:
            right, right_there = quantised(o, k, rows=rows, seed=2)
            assert gap(select.fp8_product(left_there, right_there, dtype), fp8.product(left, right)) < 5e-3


@pytest.mark.parametrize(("o", "k"), [(256, 512), (150, 300)])
@pytest.mark.parametrize("name", [name for op, name in FP8_KERNELS if op == "fp8_grouped_product"])
def test_every_product_of_experts_in_fp8_there_is_the_specification(name, o, k):
    left, left_there = quantised(5 * TILE, k, rows=1, seed=1)
    rights, rights_there = quantised(4, o, k, rows=TILE, seed=2)
    expert_X = torch.tensor([0, 0, 1, 3, 4])
    with select.override("fp8_grouped_product", name):
        if reason := refusal("fp8_grouped_product", name, torch.float8_e4m3fn):
            pytest.skip(reason)
        found = select.fp8_grouped_product(left_there, rights_there, expert_X.cuda(), torch.bfloat16)
    assert gap(found, fp8.grouped_product(left, rights, expert_X)) < 5e-3


@pytest.mark.parametrize(("f", "d"), [(256, 384), (150, 70)])
def test_the_gradient_of_experts_weights_in_fp8_there_is_the_specification(f, d):
    if reason := scaled.no_fp8_products():
        pytest.skip(reason)
    left, left_there = quantised(f, 5 * TILE, rows=1, seed=1)
    right, right_there = quantised(d, 5 * TILE, rows=1, seed=2)
    expert_X = torch.tensor([0, 0, 1, 3, 4])
    found = select.fp8_grouped_wgrad(left_there, right_there, expert_X.cuda(), 4)
    assert gap(found, fp8.grouped_wgrad(left, right, expert_X, 4)) < 1e-3


def refusal(op: str, name: str, dtype: torch.dtype) -> str | None:
    (kernel,) = [kernel for kernel in select.KERNELS if (kernel.op, kernel.name) == (op, name)]
    return kernel.refuses("cuda", dtype)


@pytest.mark.parametrize(
    ("name", "block"), [("flash_mla", 64), ("flashinfer", 16), ("flashinfer", 64), ("triton", 16), ("gathered", 16)]
)
@pytest.mark.parametrize("lengths", [(1, 130, 33), (5,)])
def test_latent_attention_of_deepseeks_widths_there_equals_the_reference(name, block, lengths):
    if reason := refusal("latent_decode", name, torch.bfloat16):
        pytest.skip(reason)
    n_blocks = -(-max(lengths) // block)
    table_RB = torch.randperm(len(lengths) * n_blocks, generator=torch.Generator().manual_seed(1)).view(-1, n_blocks)
    cells_MC = randn(table_RB.numel() * block, 576, seed=2).bfloat16()
    q_RHC = randn(len(lengths), 16, 576, seed=3).bfloat16()
    here, there = (
        Places(table_RB.to(device), torch.tensor(lengths, device=device), max(lengths), block)
        for device in ("cpu", "cuda")
    )
    with select.override("latent_decode", name):
        found = select.latent_decode(q_RHC.cuda(), cells_MC.cuda(), there, 512, 0.05)
    assert_close(found.cpu(), reference.latent_decode(q_RHC, cells_MC, here, 512, 0.05), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", ["rms_norm", "swiglu"])
def test_liger_there_equals_the_reference_forward_and_back(op, dtype):
    if reason := refusal(op, "liger", dtype):
        pytest.skip(reason)
    second = randn(33, seed=1) if op == "rms_norm" else randn(70, 33, seed=1).to(dtype)
    tensors, rest = [randn(70, 33, seed=0).to(dtype), second], [1e-6] if op == "rms_norm" else []
    found = []
    for device, call in (("cuda", getattr(select, op)), ("cpu", getattr(reference, op))):
        leaves = [tensor.to(device).requires_grad_() for tensor in tensors]
        with select.override(op, "liger" if device == "cuda" else "reference"):
            out = call(*(leaf * 1 for leaf in leaves), *rest)
        cotangent = randn(70, 33, seed=5).to(device, dtype)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, cotangent)])
    close = CLOSE if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    for there, here in zip(*found, strict=True):
        assert_close(there.cpu(), here, **close)


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("name", ["triton", "reference"])
@pytest.mark.parametrize("n", [1, 40, 300])
def test_weights_in_codes_there_are_what_they_stand_for(bits, name, n):
    weights = [randn(4, *size, seed=i) * 0.2 for i, size in enumerate(((96, 64), (96, 64), (64, 96)))]
    x_ND, weights_NA = randn(n, 64, seed=5).bfloat16(), randn(n, 2, seed=6)
    experts_NA = torch.rand(n, 4, generator=torch.Generator().manual_seed(7)).topk(2).indices
    with ExitStack() as stack:
        for part in ("pack", "linear", "experts"):
            if reason := refusal(f"coded_{part}", name, torch.bfloat16):
                pytest.skip(reason)
            stack.enter_context(select.override(f"coded_{part}", name))
        there = [coded.stacked([quantise(w.cuda(), bits) for w in of_all]) for of_all in weights]
        rows_NO = select.coded_linear(x_ND.cuda(), there[0].of(1))
        sums_ND = select.coded_experts(x_ND.cuda(), experts_NA.cuda(), weights_NA.cuda(), *there)
    rounded = [[coded.rounded(w, bits) for w in of_all] for of_all in weights]
    wide = [torch.stack([coded.multiplied_out(c, s, bits, torch.float64) for c, s in of_all]) for of_all in rounded]
    assert gap(rows_NO, x_ND.double() @ wide[0][1].T) < 5e-3
    assert gap(sums_ND, reference.moe_ffn(x_ND.double(), experts_NA, weights_NA.double(), *wide)) < 1e-2


GROUPED = replace(SMALL, attention=GQAConfig(n_heads=4, n_kv_heads=2), ffn=DenseConfig(d_ff=40))


@pytest.mark.parametrize("cfg", [GROUPED, replace(SMALL, ffn=DenseConfig(d_ff=40))], ids=["grouped", "latent"])
def test_recorded_decode_steps_answer_as_launched_ones_do(cfg):
    model = Decoder(cfg)
    model.init_weights(0)
    model.to("cuda").eval()
    requests = [
        Request(str(i), tuple(range(3 + i, 12 + 3 * i)), SamplingParams(max_tokens=9 + 4 * i, seed=i)) for i in range(5)
    ]
    found = []
    for graphs in ("auto", "off"):
        engine = Engine(model, EngineConfig(max_batch=4, graphs=graphs), run_seed=7)
        found.append([engine.generate(requests) for _ in range(2)])
        assert (engine.n_recorded > 1) == (graphs == "auto" and static.why_not(model, torch.device("cuda")) is None)
        engine.rest()
        found[-1].append(engine.generate(requests))
    for ours, launched in zip(*found, strict=True):
        for one, other in zip(ours, launched, strict=True):
            assert list(one.token_ids) == list(other.token_ids)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


@pytest.mark.parametrize("cfg", [GROUPED, SMALL], ids=["dense", "experts"])
def test_layers_compiled_by_region_learn_what_the_others_do(cfg):
    found = []
    for compiles in (False, True):
        model = Decoder(cfg)
        model.init_weights(0)
        model.to("cuda").train()
        if compiles:
            compile_layers(model)
        batch = from_rows(torch.arange(66).view(2, 33) % 61).to(torch.device("cuda"))
        loss = next_token(model, model(batch.step), batch).sum
        loss.backward()
        found.append((loss.detach().cpu(), model.embed.weight.grad.cpu()))
    assert_close(found[1][0], found[0][0], **CLOSE)
    assert_close(found[1][1], found[0][1], **CLOSE)


def test_a_batch_that_is_ready_is_pinned_and_goes_over_without_waiting():
    batch = from_rows(torch.arange(34).view(2, 17))
    ready = batch.ready(torch.device("cuda"))
    assert all(tensor.is_pinned() for tensor in (ready.step.tokens_N, ready.first.targets_N, ready.second.weights_N))
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = ready.to(torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(there.targets_N.cpu(), batch.targets_N)
