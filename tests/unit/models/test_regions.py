"""Layers compiled by region: whole graphs, shared by all layers, with the numbers of the formulas inside."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from sobre.errors import ConfigError
from sobre.kernels import select
from sobre.models.adapt import adapt
from sobre.models.config import DenseConfig, GQAConfig, IndexerConfig, LoraConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.models.decoder import Block, Decoder
from sobre.models.low_precision import set_precision
from sobre.models.regions import compile_layers
from sobre.train.batch import Batch, from_rows, from_samples
from sobre.train.config import PretrainConfig
from sobre.train.losses import next_token, second_token

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
"""What torch's compiler asks of its inputs."""
COMMON = {"vocab_size": 61, "max_len": 64, "d_model": 32, "n_layers": 3}
LATENT = MLAConfig(n_heads=2, q_rank=16, kv_rank=16, nope_dim=8, rope_dim=8, v_dim=8)
SHAPES = {
    "grouped queries, dense": ModelConfig(
        **COMMON, attention=GQAConfig(n_heads=4, n_kv_heads=2, qk_norm=True), ffn=DenseConfig(d_ff=48)
    ),
    "latent attention, experts": ModelConfig(
        **COMMON, attention=LATENT, ffn=MoEConfig(n_experts=4, n_active=2, d_expert=16, d_ff=48), n_mtp=1
    ),
}
GRAPHS = {"grouped queries, dense": 2, "latent attention, experts": 3}
"""One for each half of a layer, dense and with experts, whatever the number of layers."""


@pytest.fixture(autouse=True)
def _forgets():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def built(name: str, backend: str = "", *, recompute: bool = False, lora: bool = False) -> Decoder:
    model = Decoder(SHAPES[name])
    model.init_weights(3)
    if lora:
        adapt(model, LoraConfig(rank=2, parts=("attention", "dense")), seed=1)
    model.recompute = recompute
    if backend:
        compile_layers(model, backend)
    return model.train()


def rows(n: int, length: int) -> Batch:
    return from_rows(torch.randint(0, 61, (n, length + 1), generator=torch.Generator().manual_seed(0)))


def backward(model: Decoder, batch: Batch) -> Tensor:
    output = model(batch.step)
    loss = next_token(model, output, batch).sum + output.balance_loss
    if model.mtp is not None:
        loss = loss + second_token(model, output, batch)[0].sum
    loss.backward()
    return loss.detach()


def formulas() -> object:
    """Eager, with what stands inside a region."""
    return select.overrides(dict.fromkeys(select.COMPILED, "reference") | dict.fromkeys(select.WHOLE, "parts"))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_loss_and_gradients_are_those_of_the_formulas(name, backend, recompute):
    plain, ours, batch = built(name), built(name, backend, recompute=recompute), rows(3, 16)
    with formulas():
        expected = backward(plain, batch)
    assert float(backward(ours, batch)) == pytest.approx(float(expected), rel=1e-6)
    for (parameter, a), (_, b) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), parameter
        assert a.grad is None or torch.allclose(a.grad, b.grad, atol=2e-5, rtol=1e-4), parameter
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == GRAPHS[name]


def test_another_length_is_compiled_once_more_and_ragged_steps_are_not():
    name = "grouped queries, dense"
    ours, plain = built(name, "eager"), built(name)
    for batch, n_graphs in ((rows(3, 16), 2), (rows(3, 16), 2), (rows(2, 20), 4)):
        backward(ours, batch)
        assert counters["stats"]["unique_graphs"] == n_graphs
    ours.zero_grad()
    ragged = from_samples([(range(1, 9), [1] * 8), (range(2, 7), [1] * 5)])
    assert float(backward(ours, ragged)) == float(backward(plain, ragged))
    with torch.no_grad():
        ours.eval()(rows(3, 20).step)
    assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]


def test_adapters_are_compiled_with_the_matrices_that_they_add_to():
    name = "grouped queries, dense"
    plain, ours, batch = built(name, lora=True), built(name, "eager", lora=True), rows(3, 16)
    with formulas():
        expected = backward(plain, batch)
    assert float(backward(ours, batch)) == pytest.approx(float(expected), rel=1e-6)
    assert counters["stats"]["unique_graphs"] == 3  # the first layer's input needs no gradient, the others' do


def test_what_cannot_be_compiled_is_refused():
    model = built("grouped queries, dense")
    set_precision(model, "fp8")
    with pytest.raises(ConfigError, match="precision=fp8"):
        compile_layers(model)
    sparse = replace(LATENT, indexer=IndexerConfig(n_heads=2, dim=16, n_keys=8))
    with pytest.raises(ConfigError, match="sparse attention"):
        compile_layers(Decoder(replace(SHAPES["latent attention, experts"], attention=sparse)))
    with pytest.raises(ConfigError, match="FP8 has kernels of its own"):
        PretrainConfig(compile=True, precision="fp8")
    assert built("grouped queries, dense").parts is None
    assert all(isinstance(layer, Block) for layer in model.layers)
