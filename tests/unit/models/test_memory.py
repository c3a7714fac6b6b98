"""N-gram memory: which rows are read, what they add, and who may carry them. (That a cache, chunks, ragged steps and
folders change nothing is tried on the kind "mla+moe+memory" by every test that takes a kind.)"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sobre.app import convert
from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.errors import CheckpointError, ConfigError
from sobre.models.checkpoint import load_model, save_model
from sobre.models.config import MemoryConfig
from sobre.models.decoder import Decoder
from sobre.models.step import StepInput
from sobre.plan.count import params
from sobre.plan.hf import from_hf

from .conftest import KINDS, build, ragged

CFG = KINDS["mla+moe+memory"]


@pytest.fixture(scope="module")
def model() -> Decoder:
    return build(CFG)


def test_a_row_is_named_by_the_last_classes_and_by_nothing_before_them(model):
    tokens = [5, 9, 20, 7, 9, 20, 7]
    step = StepInput(torch.tensor([*tokens, 20, 7]), lengths=(7, 2))
    rows_NI = model.memory.at["0"].rows(model.memory.grams(step, None))
    assert rows_NI.shape == (9, 4)
    assert torch.equal(rows_NI[3], rows_NI[6])  # 9 20 7, after other tokens
    assert torch.equal(rows_NI[3, :2], rows_NI[8, :2])  # 20 7 as a 2-gram; the 3-gram holds the beginning
    assert not torch.equal(rows_NI[3, 2:], rows_NI[8, 2:])
    assert (rows_NI // CFG.memory.n_rows).unique(dim=0).tolist() == [[0, 1, 2, 3]]  # every head has its own table


def test_tokens_of_one_class_read_one_row(model):
    classes_V = model.memory.classes_V
    one, other = next((i, j) for i in range(len(classes_V)) for j in range(i) if classes_V[i] == classes_V[j])
    layer = model.memory.at["1"]
    rows = [layer.rows(model.memory.grams(StepInput(torch.tensor([3, t]), (2,)), None)) for t in (one, other)]
    assert torch.equal(*rows)


def test_rows_spread_evenly_over_a_table():
    memory = Decoder(dataclasses.replace(CFG, memory=MemoryConfig(layers=(0,), n_rows=64, dim=4))).memory
    grams_NO = torch.cartesian_prod(torch.arange(1, 60), torch.arange(1, 60), torch.arange(1, 4))
    for column, rows_N in enumerate((memory.at["0"].rows(grams_NO) % 64).unbind(1)):
        distinct = grams_NO[:, :2].unique(dim=0).shape[0] if column < 2 else len(grams_NO)
        counts = rows_N.bincount(minlength=64) / (len(grams_NO) / 64)
        assert counts.min() > 0.5, (column, distinct)
        assert counts.max() < 1.7, (column, distinct)


def test_a_layer_adds_what_the_formula_says(model):
    layer, x_ND = model.memory.at["0"], torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    step = ragged((6,))
    grams_NO = model.memory.grams(step, None)

    def norm(y_ND: torch.Tensor) -> torch.Tensor:
        return y_ND / (y_ND.square().mean(-1, keepdim=True) + CFG.norm_eps).sqrt()

    with torch.no_grad():
        found = layer.table_MW[layer.rows(grams_NO)].flatten(1)
        gate_N = torch.sigmoid((norm(x_ND) * norm(found @ layer.key.weight.T)).sum(-1) / 32**0.5)
        y_ND = gate_N[:, None] * (found @ layer.value.weight.T)
        smooth_ND = torch.stack(
            [sum(layer.conv_KD[tap] * norm(y_ND)[t - 3 * tap] for tap in range(3) if t >= 3 * tap) for t in range(6)]
        )
        assert_close(layer(x_ND, grams_NO, step, None), x_ND + y_ND + torch.nn.functional.silu(smooth_ND))


def test_at_first_the_convolution_is_silent_and_the_rest_of_the_weights_are_those_without_memory():
    with_memory, without = Decoder(CFG), Decoder(dataclasses.replace(CFG, memory=MemoryConfig()))
    with_memory.init_weights(4), without.init_weights(4)
    assert all(not layer.conv_KD.any() for layer in with_memory.memory.at.values())
    assert all(torch.equal(tensor, with_memory.state_dict()[name]) for name, tensor in without.state_dict().items())


def test_a_backward_pass_touches_the_rows_that_were_read_and_no_others(model):
    step = ragged((5, 4))
    model.zero_grad()
    model(step).hidden_ND.square().sum().backward()
    layer = model.memory.at["0"]
    grad = layer.table_MW.grad.coalesce()
    assert grad.is_sparse
    assert grad.indices()[0].tolist() == layer.rows(model.memory.grams(step, None)).unique().tolist()
    model.zero_grad()


@pytest.mark.parametrize(
    "wrong", [{"layers": (2,)}, {"layers": (-1,)}, {"layers": (0, 0)}, {"orders": (0,)}, {"n_rows": 0}]
)
def test_a_memory_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"memory\."):
        dataclasses.replace(CFG, memory=MemoryConfig(**wrong))


def test_the_folder_says_that_it_is_ours_alone_and_counts_as_what_it_is(model, tmp_path: Path):
    save_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["base_model_type"]) == ("sobre", "deepseek_v3")
    assert load_model(tmp_path).cfg.memory == CFG.memory
    assert load_model(tmp_path).family == "deepseek_v3"
    assert from_hf(config).total == params(CFG).total
    half = load_model(tmp_path, dtype=torch.bfloat16)
    assert half.memory.classes_V.dtype == torch.int32
    assert half.memory.at["0"].table_MW.dtype == torch.bfloat16


def test_transformers_refuses_the_folder_instead_of_loading_it_without(model, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    save_model(model, tmp_path)
    with pytest.raises(ValueError, match="model type `sobre`"):
        transformers.AutoConfig.from_pretrained(tmp_path)


def test_bit_equality_across_batches_is_refused_with_the_reason(model):
    with pytest.raises(ConfigError, match="no fixed-shape forms of .* n-gram memory"):
        Engine(model, EngineConfig(max_batch=2, deterministic=True))


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_convert_refuses_with_the_reason(model, form, tmp_path: Path):
    save_model(model, tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"n-gram memory .*serve (it|the model) with sobre"):
        convert.main([str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", form])
    assert not (tmp_path / "theirs").exists()
