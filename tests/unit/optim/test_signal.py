"""The share of signal in what AdamW remembers: none of noise, all of what never changes, and the cosine between."""

import pytest
import torch
from torch import nn

from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.optim.signal import shared

SHAPES = {"layers.0.attn.q.weight": (60, 40), "embed.weight": (50, 40), "norm.weight": (40,)}


def optimizer_after(n_steps: int, signal: float, *, betas=(0.9, 0.95), seed: int = 0, kind: str = "adamw") -> Optimizer:
    """One that has seen gradients of which a share `signal`, of their squares, is the same in all steps."""
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> dict[str, torch.Tensor]:
        return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    params = {name: nn.Parameter(value) for name, value in drawn().items()}
    optimizer = Optimizer(params, roles(params), OptimConfig(kind=kind, betas=betas))
    same = drawn()
    for _ in range(n_steps):
        for name, noise in drawn().items():
            params[name].grad = signal**0.5 * same[name] + (1 - signal) ** 0.5 * noise
        optimizer.step(1.0)
    return optimizer


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.8, 0.99)])
@pytest.mark.parametrize("n_steps", [2, 5, 60])
@pytest.mark.parametrize("signal", [0.0, 0.1, 0.5, 1.0])
def test_the_share_is_found_whatever_the_memory_and_from_the_second_step_on(signal, n_steps, betas) -> None:
    found = [optimizer_after(n_steps, signal, betas=betas, seed=seed).signal() for seed in range(4)]
    assert sum(found) / len(found) == pytest.approx(signal, abs=0.02)


def test_what_chance_leaves_is_1_at_first_and_a_nineteenth_in_the_end() -> None:
    held = optimizer_after(200, 0.0)._adam.state.values()
    m, v = (
        sum(float(kept[key].double().pow(p).sum()) for kept in held) for key, p in (("exp_avg", 2), ("exp_avg_sq", 1))
    )
    assert m / v == pytest.approx(0.1 / 1.9, abs=0.004)
    assert optimizer_after(1, 0.5).signal() is None, "one step shares nothing with another"


def test_it_is_the_cosine_of_the_gradients_of_two_steps() -> None:
    generator = torch.Generator().manual_seed(1)
    same = torch.randn(4000, generator=generator)
    one, other = (same + 1.5 * torch.randn(4000, generator=generator) for _ in range(2))
    cosine = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    mean, square = 0.9 * 0.1 * one + 0.1 * other, 0.95 * 0.05 * one**2 + 0.05 * other**2
    assert shared([mean], [square], [torch.tensor(2.0)], (0.9, 0.95)) == pytest.approx(cosine, abs=0.01)


def test_steps_that_undo_one_another_share_less_than_nothing_and_zeros_say_nothing() -> None:
    ones = torch.ones(10)
    mean = 0.9 * 0.1 * ones - 0.1 * ones
    square = 0.95 * 0.05 * ones + 0.05 * ones
    assert shared([mean], [square], [torch.tensor(2.0)], (0.9, 0.95)) == pytest.approx(-1.0, abs=1e-4)
    assert shared([0 * ones], [0 * ones], [torch.tensor(5.0)], (0.9, 0.95)) is None
    assert shared([], [], [], (0.9, 0.95)) is None


def test_where_muon_moves_the_matrices_the_rest_is_read() -> None:
    assert optimizer_after(40, 0.3, kind="muon").signal() == pytest.approx(0.3, abs=0.03)
