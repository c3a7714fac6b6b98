"""Weights in 8 and 4 bits: the kernels against the plain formula, and what a model loses."""

import pytest
import torch
from torch.testing import assert_close

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.errors import ConfigError, EngineError
from sobre.kernels import coded, select
from sobre.kernels.coded import GROUP, STEPS, in_bytes
from sobre.models.config import DenseConfig, GQAConfig, MemoryConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.models.quantised import QuantisedLinear, quantised
from sobre.models.step import StepInput

SHAPES = {
    "mla-moe": {
        "attention": MLAConfig(n_heads=4, q_rank=32, kv_rank=32, nope_dim=8, rope_dim=16, v_dim=8),
        "ffn": MoEConfig(n_experts=4, n_active=2, d_expert=32, d_ff=64),
    },
    "gqa-tied": {
        "attention": GQAConfig(n_heads=4, n_kv_heads=2, head_dim=8),
        "ffn": DenseConfig(d_ff=64),
        "tied": True,
    },
    "gqa-memory": {
        "attention": GQAConfig(n_heads=4, n_kv_heads=2, head_dim=8),
        "ffn": DenseConfig(d_ff=64),
        "memory": MemoryConfig(layers=(0, 1), n_rows=37, dim=24),
    },
}


def build(kind, **other):
    sizes = {"vocab_size": 96, "d_model": 32, "n_layers": 2, "max_len": 64, "init_std": 0.15}
    decoder = Decoder(ModelConfig(**sizes | SHAPES[kind] | other))
    decoder.init_weights(1)
    return decoder.eval()


def in_eight_bits(weight_OI):
    """The weights that int8 stands for, by the plain formula."""
    scale = (weight_OI.abs().amax(-1, keepdim=True) / 127).bfloat16().float()
    return (weight_OI / scale).round() * scale


def in_four_bits(weight_OI):
    """What int4 stands for: of each group the form that loses the least."""
    groups = weight_OI.unflatten(1, (-1, GROUP))
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scales = [(largest / -steps).bfloat16().float() for steps in STEPS]
    forms = torch.stack([(groups / scale).round().clamp(-8, 7) * scale for scale in scales])
    best = (forms - groups).square().sum(-1, keepdim=True).argmin(0, keepdim=True)
    return forms.take_along_dim(best, 0)[0].flatten(1)


@pytest.mark.parametrize("seed", range(3))
def test_four_bits_use_all_sixteen_codes_and_lose_less_than_a_fixed_scale(seed):
    weight_OI = torch.randn(64, 128, generator=torch.Generator().manual_seed(seed))
    codes_OI, scales_OX = coded.rounded(weight_OI, "int4")
    lost = (coded.multiplied_out(codes_OI, scales_OX, "int4", torch.float32) - weight_OI).norm() / weight_OI.norm()
    assert 0.075 < lost < 0.083  # 0.097 with the largest at 7 steps, 0.086 at 8
    assert (int(codes_OI.min()), int(codes_OI.max())) == (-8, 7)
    on_grid_OI = torch.randint(-8, 8, (4, 64), generator=torch.Generator().manual_seed(seed)) * -0.25
    on_grid_OI[:, ::32] = 2.0
    codes_OI, scales_OX = coded.rounded(on_grid_OI, "int4")
    assert torch.equal(coded.multiplied_out(codes_OI, scales_OX, "int4", torch.float32), on_grid_OI)
    codes_OI, scales_OX = coded.rounded(torch.zeros(2, 32), "int4")
    assert not codes_OI.any()
    assert scales_OX.isfinite().all()


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("n", [1, 7])
def test_a_product_is_that_of_the_rounded_weights(bits, n):
    generator = torch.Generator().manual_seed(0)
    weight_OI, x_NI = torch.randn(48, 96, generator=generator), torch.randn(n, 96, generator=generator).bfloat16()
    bias_O = torch.randn(48, generator=generator)
    got = QuantisedLinear(weight_OI, bias_O, bits)(x_NI)
    rounds_inputs = select.choose("coded_linear", "cpu", torch.bfloat16).name == "native"
    taken_NI = in_bytes(x_NI, bits) if rounds_inputs else x_NI.float()
    stood_for = {"int8": in_eight_bits, "int4": in_four_bits}[bits]
    y_NO = (taken_NI @ stood_for(weight_OI).T).bfloat16()  # rounded before the bias and after it
    exact = (y_NO + bias_O.bfloat16()).float()
    assert got.dtype == torch.bfloat16
    assert_close(got.float(), exact, rtol=0, atol=0.15)
    assert (got.float() - exact).norm() / exact.norm() < 5e-3


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("kind", SHAPES)
def test_where_nothing_multiplies_codes_they_are_multiplied_out(kind, bits):
    """As on an accelerator without triton; the CPU's own products differ by their rounding alone."""
    model, found = build(kind), []
    step = StepInput(torch.randint(96, (40,), generator=torch.Generator().manual_seed(0)), (40,))
    for name in ("torch", "reference"):
        with select.overrides({f"coded_{part}": name for part in ("pack", "linear", "experts")}), torch.no_grad():
            twin = quantised(model, bits)
            found.append(twin.logits(twin(step).hidden_ND).log_softmax(-1).double())
    divergence = (found[0].exp() * (found[0] - found[1])).sum(-1).mean()
    assert 0 < divergence < 2e-3


@pytest.mark.parametrize("kind", SHAPES)
def test_eight_bits_lose_little_and_four_bits_more(kind):
    model = build(kind)
    step = StepInput(torch.randint(96, (40,), generator=torch.Generator().manual_seed(0)), (40,))
    with torch.no_grad():
        own = model.logits(model(step).hidden_ND).log_softmax(-1)

        def divergence(bits):
            twin = quantised(model, bits)
            return float((own.exp() * (own - twin.logits(twin(step).hidden_ND).log_softmax(-1))).sum(-1).mean())

        assert 0 < divergence("int8") < 2e-3 < divergence("int4") < 0.1
    assert model.dtype is torch.float32
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", SHAPES)
def test_an_engine_decodes_with_them(kind):
    model = build(kind)
    requests = [Request(str(i), (i, 2, 3), SamplingParams(max_tokens=5, temperature=0.0)) for i in range(3)]
    engine = Engine(model, EngineConfig(weights="int8", max_batch=3))
    twin = quantised(model, "int8")
    for asked, got in zip(requests, engine.generate(requests), strict=True):
        context = torch.tensor([*asked.prompt_ids, *got.token_ids])
        with torch.no_grad():
            logits = twin.logits(twin(StepInput(context, (len(context),))).hidden_ND)[2:-1]
        chosen = logits.gather(1, torch.tensor(got.token_ids)[:, None])[:, 0]
        assert (logits.amax(1) - chosen < 0.05).all()  # bfloat16 rounds the two ways of attention apart
    with pytest.raises(EngineError, match="build a new engine"):
        engine.weights_changed()


def test_shapes_that_the_kernels_do_not_take_are_refused_by_name():
    odd = {"ffn": DenseConfig(d_ff=40), "vocab_size": 90}
    with pytest.raises(ConfigError, match=r"int4 takes matrices .*ffn.gate.weight has 32 and 40; int8 takes any"):
        quantised(build("gqa-tied", **odd), "int4")
    quantised(build("gqa-tied", **odd), "int8")
    quantised(build("mla-moe", vocab_size=90), "int4")  # the head has 8 bits
    with pytest.raises(ConfigError, match="no fixed-shape products for engine.weights='int8'"):
        EngineConfig(deterministic=True, weights="int8")
