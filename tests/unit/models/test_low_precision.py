"""FP8 in a whole model: which parts train in it, that only training does, and what is refused."""

from dataclasses import replace

import pytest
import torch

from sobre.bench.config import BenchConfig
from sobre.config.recipe import load_recipe
from sobre.errors import ConfigError, RunError
from sobre.models.decoder import Decoder
from sobre.models.layers import Linear
from sobre.models.low_precision import set_precision
from sobre.models.moe import MoE, local_dispatch
from sobre.models.step import StepInput
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.train.batch import from_rows
from sobre.train.losses import next_token
from sobre.train.step import train_step


@pytest.fixture
def model(nano_config) -> Decoder:
    model = Decoder(replace(nano_config, n_mtp=1))
    model.init_weights(0)
    return model


def test_matrices_and_experts_set_precision_and_nothing_else_does(model):
    set_precision(model, "fp8")
    on = {name for name, module in model.named_modules() if getattr(module, "precision", "auto") != "auto"}
    linear = {name for name, module in model.named_modules() if isinstance(module, Linear | MoE)}
    assert on == linear - {"head"}
    assert {"layers.0.attn.kv_down", "layers.1.ffn", "layers.1.ffn.shared.up", "mtp.proj"} <= on
    set_precision(model, "auto")
    assert not [module for module in model.modules() if getattr(module, "precision", "auto") != "auto"]


def test_only_training_sees_fp8(model):
    step = StepInput(torch.arange(12), lengths=(12,))
    before = model.eval()(step).hidden_ND
    trained_before = model.train()(step).hidden_ND
    set_precision(model, "fp8")
    assert torch.equal(model.eval()(step).hidden_ND, before)
    assert not torch.equal(model.train()(step).hidden_ND, trained_before)
    assert (model(step).hidden_ND - trained_before).norm() / trained_before.norm() < 0.2


@pytest.mark.parametrize("low", ["fp8", "fp8-power-of-two"])
def test_every_parameter_gets_a_float32_gradient_near_that_of_float32(model, low):
    rows = torch.randint(0, 64, (4, 33), generator=torch.Generator().manual_seed(0))
    grads = []
    for precision in ("auto", low):
        set_precision(model, precision)
        model.train().zero_grad()
        batch = from_rows(rows)
        next_token(model, model(batch.step), batch).sum.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    whole = [torch.cat([grad.flatten() for grad in found.values()]) for found in grads]
    assert whole[1].dtype == torch.float32
    assert torch.cosine_similarity(*whole, dim=0) > 0.98


def test_a_step_that_meets_an_infinity_is_refused_and_changes_nothing(model):
    set_precision(model.train(), "fp8")
    names = dict(model.named_parameters())
    optimizer = Optimizer(names, roles(names), OptimConfig())
    with torch.no_grad():
        model.layers[0].ffn.up.weight[3, 5] = float("inf")
    before = model.embed.weight.clone()
    with pytest.raises(RunError, match="must be finite"):
        train_step(model, optimizer, [from_rows(torch.ones(2, 9).long())], next_token, lr_scale=1.0, clip=1.0)
    assert torch.equal(model.embed.weight, before)


def test_experts_of_several_processes_are_refused(nano_config):
    spread = Decoder(nano_config, dispatch=lambda *inputs: local_dispatch(*inputs))
    with pytest.raises(ConfigError, match=r"layers\.1\.ffn are spread over processes"):
        set_precision(spread, "fp8")


def test_a_device_without_fp8_is_refused(model, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "device", property(lambda tensor: torch.device("mps")))
    with pytest.raises(ConfigError, match="MPS has no FP8"):
        set_precision(model, "fp8")


def test_a_recipe_turns_it_on_for_the_stages_that_have_it():
    recipe = load_recipe(["nano", "--pretrain.precision", "fp8", "--sft.precision", "fp8-power-of-two"], BenchConfig)[0]
    assert (recipe.pretrain.precision, recipe.sft.precision) == ("fp8", "fp8-power-of-two")
    with pytest.raises(SystemExit):  # the engine samples with the masters, so RL would train another model
        load_recipe(["nano", "--rl.precision", "fp8"], BenchConfig)
