"""Activation checkpointing: the same gradients from one kept tensor a layer, and the planner knows what is held."""

import weakref
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sobre.kernels import attention, select
from sobre.models.adapt import adapt
from sobre.models.config import DenseConfig, GQAConfig, LoraConfig, MLAConfig, ModelConfig, MoEConfig, RopeConfig
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.plan.layout import RUNTIME_BYTES, Layout, training_memory
from sobre.plan.outline import outline
from sobre.train.batch import Batch, from_rows
from sobre.train.losses import next_token, second_token
from sobre.train.step import train_step

SHAPES = {
    "latent attention, experts": ModelConfig(
        vocab_size=256,
        max_len=256,
        d_model=96,
        n_layers=4,
        attention=MLAConfig(n_heads=4, kv_rank=48, nope_dim=24, rope_dim=8, v_dim=24),
        ffn=MoEConfig(n_experts=8, n_active=2, d_expert=48, d_ff=192),
        n_mtp=1,
    ),
    "grouped queries, dense": ModelConfig(
        vocab_size=256,
        max_len=256,
        d_model=128,
        n_layers=6,
        attention=GQAConfig(n_heads=8, n_kv_heads=2, head_dim=16, qk_norm=True),
        ffn=DenseConfig(d_ff=384),
        rope=RopeConfig(interleaved=False),
    ),
    "grouped queries, wide experts alone": ModelConfig(
        vocab_size=512,
        max_len=256,
        d_model=64,
        n_layers=5,
        attention=GQAConfig(n_heads=4, n_kv_heads=4, head_dim=16),
        ffn=MoEConfig(n_experts=4, n_active=2, d_expert=128, n_shared=0, n_dense_layers=0),
        rope=RopeConfig(interleaved=False),
    ),
}


class Living(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive: those given, and whatever is made while it is on."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive: set[int] = set()
        self.now = self.peak = 0
        for tensor in given:
            self.add(tensor)

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:
            self.alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, storage._cdata, storage.nbytes())

    def drop(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return made


def built(name: str, *, recompute: bool, lora: bool = False) -> Decoder:
    model = Decoder(SHAPES[name])
    model.init_weights(3)
    model.recompute = recompute
    if lora:
        adapt(model, LoraConfig(rank=4), seed=1)
    return model.train()


def rows(n: int, length: int) -> Batch:
    return from_rows(torch.randint(0, 256, (n, length + 1), generator=torch.Generator().manual_seed(0)))


def backward(model: Decoder, batch: Batch) -> Tensor:
    output = model(batch.step)
    loss = next_token(model, output, batch).sum + output.balance_loss
    if model.mtp is not None:
        loss = loss + second_token(model, output, batch)[0].sum
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.slow
def test_recomputed_gradients_are_the_same_bits(name, lora):
    kept, again = built(name, recompute=False, lora=lora), built(name, recompute=True, lora=lora)
    batch = rows(3, 40)
    assert torch.equal(backward(kept, batch), backward(again, batch))
    for (parameter, a), (_, b) in zip(kept.named_parameters(), again.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), parameter
        assert a.grad is None or torch.equal(a.grad, b.grad), parameter


def measured(name: str, n: int, length: int, *, recompute: bool, lora: bool = False) -> int:
    """Most bytes alive at once in a whole optimizer step."""
    model, batch = built(name, recompute=recompute, lora=lora), rows(n, length)
    names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = Optimizer(names, roles(names), OptimConfig(kind="adamw"))

    def step() -> None:
        train_step(model, optimizer, [batch], next_token, lr_scale=1.0, clip=1.0, mtp_weight=0.0 if lora else 0.3)

    step()  # the moments are made here
    optimizer.zero_grad()
    with Living([*model.parameters(), *model.buffers(), *optimizer.state_dict().values()]) as living:
        step()
    return living.peak


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("name", "n", "length"), list(zip(SHAPES, (12, 4, 12), (96, 256, 96), strict=True)))
@pytest.mark.slow
def test_the_planner_s_memory_is_what_a_step_takes_within_15_percent(name, n, length, recompute, monkeypatch):
    """With the experts' kernel of accelerators, and attention that keeps no probabilities, as fused ones do: a CPU's
    kernels keep less of experts, and more of attention where that is small."""
    monkeypatch.setattr(attention, "SAVE_BYTES", 0)
    layout = Layout(micro_batch=n, recompute="full" if recompute else "none")
    parts = training_memory(outline(SHAPES[name]), layout, length, 1, "fp32")
    planned = sum(parts.values()) - RUNTIME_BYTES - parts["fragments"]  # what only a chip has
    with select.override("moe_ffn", "grouped"), select.override("causal_attention", "block"):
        assert planned == pytest.approx(measured(name, n, length, recompute=recompute), rel=0.15)


@pytest.mark.slow
def test_recomputing_and_adapters_save_the_memory_that_they_should():
    name = "grouped queries, dense"
    full, again = (measured(name, 4, 256, recompute=recompute) for recompute in (False, True))
    adapters = measured(name, 4, 256, recompute=True, lora=True)
    weights = sum(parameter.nbytes for parameter in built(name, recompute=False).parameters())
    assert again < 0.5 * full
    assert adapters < again - 2 * weights  # no moments of the weights, and no gradients
