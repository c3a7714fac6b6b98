"""A run that goes on from a folder balances its experts as the recipe says: no folder holds how."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sobre.app.adapting import load_start
from sobre.config.recipe import Recipe
from sobre.models.checkpoint import save_model
from sobre.models.config import DenseConfig, GQAConfig, MLAConfig, ModelConfig, MoEConfig, RopeConfig
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.runtime.console import Console
from sobre.train.batch import from_samples
from sobre.train.config import StartConfig
from sobre.train.losses import next_token
from sobre.train.step import train_step

MLA = MLAConfig(n_heads=2, q_rank=0, kv_rank=8, nope_dim=8, rope_dim=4, v_dim=8)
MOE = MoEConfig(n_experts=4, n_active=2, d_expert=8, d_ff=16)


def saved(folder: Path, **changes: object) -> str:
    cfg = ModelConfig(vocab_size=64, d_model=16, n_layers=2, max_len=64, attention=MLA, ffn=MOE)
    model = Decoder(replace(cfg, **changes))
    model.init_weights(0)
    save_model(model, folder)
    return str(folder)


def started(folder: str, ffn: MoEConfig | DenseConfig) -> Decoder:
    recipe = Recipe(stages=("sft",), start=StartConfig(model=folder), model=ModelConfig(ffn=ffn))
    return load_start(recipe, torch.float32, Console(quiet=True))


def step(model: Decoder) -> None:
    optimizer = Optimizer(dict(model.named_parameters()), roles(dict(model.named_parameters())), OptimConfig())
    batch = from_samples([(list(range(3, 14)), [0] * 4 + [1] * 7), (list(range(20, 27)), [0, 0, 1, 1, 1, 1, 1])])
    train_step(model, optimizer, [batch], next_token, lr_scale=1.0, clip=1.0)


@pytest.mark.parametrize(
    ("ffn", "speed"),
    [(MoEConfig(bias_speed=0.25), 0.25), (MoEConfig(bias_speed=0.0), 0.0), (DenseConfig(), MoEConfig().bias_speed)],
)
def test_biases_of_a_model_from_a_folder_move_at_the_recipes_speed(tmp_path: Path, ffn, speed: float) -> None:
    model = started(saved(tmp_path), ffn)
    before = [router.bias_E.clone() for router in model.routers()]
    step(model)
    moved = torch.cat([router.bias_E - old_E for router, old_E in zip(model.routers(), before, strict=True)])
    assert_close(moved.abs().max(), torch.tensor(speed))


def test_the_loss_of_balance_is_the_recipes_too(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    light, heavy = (started(folder, MoEConfig(balance_alpha=alpha)) for alpha in (0.001, 0.01))
    batch = from_samples([(list(range(3, 14)), [1] * 11)])
    one, ten = (float(model.train()(batch.step).balance_loss.detach()) for model in (light, heavy))
    assert one > 0
    assert ten == pytest.approx(10 * one, rel=1e-4)


def test_a_family_without_biases_keeps_none(tmp_path: Path) -> None:
    gqa = GQAConfig(n_heads=2, n_kv_heads=2, head_dim=8, qk_norm=True)
    moe = replace(MOE, n_shared=0, score="softmax", biased=False, bias_speed=0.0, n_dense_layers=0)
    folder = saved(tmp_path, attention=gqa, ffn=moe, rope=RopeConfig(interleaved=False))
    assert started(folder, MoEConfig(bias_speed=0.25)).cfg.ffn.bias_speed == 0.0
