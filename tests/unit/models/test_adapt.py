"""Adapters: they begin as nothing, learn alone, merge exactly, and leave and come back in PEFT's format."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sobre.errors import CheckpointError, ConfigError
from sobre.models.adapt import adapt, adaptable, adapters, merge, merged_state, sharing_copy
from sobre.models.checkpoint import load_adapted, load_model, save_adapter, save_model
from sobre.models.config import LoraConfig
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.plan.count import adapter_numbers, train_flops
from sobre.train.batch import from_samples
from sobre.train.losses import next_token
from sobre.train.step import train_step

from .conftest import KINDS, build, ragged

LORA = LoraConfig(rank=4, alpha=8)
STEP = ragged((9, 5, 12))


def adapted(cfg, lora: LoraConfig = LORA, *, moved: bool = True) -> Decoder:
    """A model with adapters that add something."""
    model = build(cfg)
    adapt(model, lora, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for lora_module in adapters(model).values():
            for name, parameter in lora_module.named_parameters():
                if moved and name.startswith("up"):
                    parameter.normal_(0.0, 0.1, generator=generator)
    return model


def logits(model: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(STEP).hidden_ND)


def batch():
    return from_samples([(list(range(3, 14)), [0] * 4 + [1] * 7), (list(range(20, 27)), [0, 0, 1, 1, 1, 1, 1])])


def test_a_new_adapter_changes_nothing(kind):
    before = logits(build(kind))
    assert_close(
        logits(adapted(kind, moved=False)), before, rtol=1e-5, atol=1e-5
    )  # experts are summed in another order


def test_merged_weights_compute_what_the_adapters_add(kind):
    model = adapted(kind)
    apart = logits(model)
    assert (apart - logits(build(kind))).abs().max() > 0.1  # they do add something
    merge(model)
    assert not adapters(model)
    assert model.lora is None
    assert_close(logits(model), apart, rtol=1e-4, atol=1e-4)


def test_the_merged_weight_is_the_formula():
    model = adapted(KINDS["mla+moe"], LoraConfig(rank=4, alpha=8, rank_stabilised=True))
    lora, before = model.layers[1].ffn.lora.gate, model.layers[1].ffn.gate_EFD.clone()
    merged = merged_state(model)["layers.1.ffn.gate_EFD"]
    for expert in range(8):
        expected = before[expert] + 8 / 4**0.5 * lora.up_EOR[expert] @ lora.down_ERI[expert]
        assert_close(merged[expert], expected)
    assert torch.equal(model.layers[1].ffn.gate_EFD, before)


@pytest.mark.parametrize(
    ("part", "some", "none"),
    [
        ("attention", "layers.0.attn.kv_up.weight", "ffn"),
        ("dense", "layers.1.ffn.shared.up.weight", "attn"),
        ("experts", "layers.1.ffn.down_EDF", "attn"),
    ],
)
def test_the_parts_say_what_is_adapted(part, some, none):
    names = adaptable(build(KINDS["mla+moe"]), (part,))
    assert some in names
    assert not any(f".{none}." in name or "router" in name or not name.startswith("layers.") for name in names)


def test_a_step_moves_the_adapters_and_nothing_else(kind):
    model = adapted(kind, moved=False).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert learning
    assert all(".lora." in name for name in learning)
    optimizer = Optimizer(learning, roles(learning), OptimConfig())
    assert not optimizer.momentum
    for _ in range(2):
        train_step(model, optimizer, [batch()], next_token, lr_scale=1.0, clip=1.0, rebalance=False)
    for name, tensor in model.state_dict().items():
        assert (".lora." in name) == (not torch.equal(tensor, before[name])), name
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert {key.split("/", 1)[1] for key in optimizer.state_dict()} == set(learning)


def test_gradients_of_adapters_are_those_of_the_merged_weights(kind):
    """dL/d up = scale dL/dW down^T, whatever kernel multiplied."""
    model, whole = adapted(kind), adapted(kind)
    names = adapters(whole)
    downs = {name: getattr(lora, "down_RI", None) for name, lora in names.items()}
    downs = {name: down if down is not None else names[name].down_ERI for name, down in downs.items()}
    merge(whole)
    for one in (model, whole):
        one.train()
        loss = next_token(one, one(batch().step), batch()).sum
        loss.backward()
    for name, lora in adapters(model).items():
        up = lora.up_OR if hasattr(lora, "up_OR") else lora.up_EOR
        expected = lora.scale * whole.get_parameter(name).grad @ downs[name].detach().mT
        assert_close(up.grad, expected, rtol=2e-3, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.slow
def test_the_folder_comes_back_with_and_without_merging(kind, tmp_path: Path):
    model = adapted(dataclasses.replace(kind, n_mtp=0), LoraConfig(rank=4, alpha=3, rank_stabilised=True))
    save_model(build(dataclasses.replace(kind, n_mtp=0)), tmp_path / "base")
    save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    back = load_adapted(tmp_path / "adapter")
    assert all(torch.equal(t, back.state_dict()[name]) for name, t in model.state_dict().items())
    assert back.lora is not None
    assert back.lora.scale == pytest.approx(model.lora.scale)
    merged = load_model(tmp_path / "adapter")
    assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-4)
    save_model(model, tmp_path / "merged")
    again = load_model(tmp_path / "merged")
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in merged.state_dict().items())


def test_the_planner_counts_the_adapters(kind):
    model = adapted(kind)
    found = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert adapter_numbers(kind, LORA) == found
    frozen = train_flops(kind, [64], lora=LORA)
    assert train_flops(kind, [64]) > frozen > train_flops(dataclasses.replace(kind, n_mtp=0), [64]) * 2 / 3


def test_a_copy_for_reference_shares_what_is_frozen():
    model = adapted(KINDS["mla+moe"])
    twin = sharing_copy(model)
    assert twin.embed.weight is model.embed.weight
    assert twin.layers[0].attn.o.lora.up_OR is not model.layers[0].attn.o.lora.up_OR
    assert torch.equal(logits(twin), logits(model))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(build(KINDS["gqa+dense"]), tmp_path / "base")
    save_adapter(adapted(KINDS["gqa+dense"]), tmp_path / "adapter", base=str(tmp_path / "base"))
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "its base /nowhere/at/all is not here"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"r": 7}, "r=7 ask for"),
    ],
)
def test_an_adapter_that_cannot_be_right_is_refused(folder: Path, change, words):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=words.replace("(", r"\(")):
        load_model(folder)


def test_tensors_that_fit_nothing_and_halves_of_a_pair_are_named(folder: Path):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        tensors | {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 32)}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(CheckpointError, match="lm_head.lora_A.weight"):
        load_model(folder)
    half = {n: t for n, t in tensors.items() if n != "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"}
    save_file(half, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks .*layers.1.self_attn.q_proj.lora_B.weight"):
        load_model(folder)


def test_a_model_without_the_part_is_refused():
    with pytest.raises(ConfigError, match="has none of them"):
        adapt(build(KINDS["gqa+dense"]), dataclasses.replace(LORA, parts=("experts",)), seed=0)
