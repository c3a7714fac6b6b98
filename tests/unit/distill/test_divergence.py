"""The divergences: by hand, against torch's kl_div, and the same by chunks as at once, gradients included."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from sobre.distill import divergence as module
from sobre.distill.divergence import divergence, head_divergence

STUDENT = torch.tensor([[0.5, 0.25, 0.25]]).log()
TEACHER = torch.tensor([[0.25, 0.25, 0.5]]).log()


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        (1.0, 0.5 * math.log(2) - 0.25 * math.log(2)),  # p log(p / q): 1/2 log 2, 0, 1/4 log 1/2
        (0.0, 0.5 * math.log(2) - 0.25 * math.log(2)),
        # m = (3/8, 1/4, 3/8): each KL is 1/2 log 4/3 + 1/4 log 2/3
        (0.5, 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)),
        # m = 1/4 q + 3/4 p = (7/16, 1/4, 5/16)
        (
            0.25,
            0.25 * (0.25 * math.log(4 / 7) + 0.5 * math.log(8 / 5))
            + 0.75 * (0.5 * math.log(8 / 7) + 0.25 * math.log(4 / 5)),
        ),
    ],
)
def test_three_words_by_hand(beta: float, expected: float) -> None:
    assert divergence(STUDENT, TEACHER, beta).tolist() == [pytest.approx(expected, abs=1e-6)]


def test_reverse_and_forward_are_the_kl_div_of_torch_with_the_sides_swapped(seeded_randn) -> None:
    student_NV, teacher_NV = seeded_randn(5, 11), seeded_randn(5, 11, seed=1)
    p_NV, q_NV = student_NV.log_softmax(-1), teacher_NV.log_softmax(-1)

    def torchs(target: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        return F.kl_div(given, target, reduction="none", log_target=True).sum(-1)

    assert_close(divergence(student_NV, teacher_NV, 1.0), torchs(p_NV, q_NV))
    assert_close(divergence(student_NV, teacher_NV, 0.0), torchs(q_NV, p_NV))
    m_NV = (0.3 * q_NV.exp() + 0.7 * p_NV.exp()).log()
    mixed_N = 0.3 * torchs(q_NV, m_NV) + 0.7 * torchs(p_NV, m_NV)
    assert_close(divergence(student_NV, teacher_NV, 0.3), mixed_N)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_it_is_zero_for_equal_models_and_pulls_the_student_to_the_teacher(beta: float, seeded_randn) -> None:
    teacher_NV = seeded_randn(4, 7)
    assert_close(divergence(teacher_NV + 3.0, teacher_NV, beta), torch.zeros(4), atol=1e-6, rtol=0)
    student_NV = seeded_randn(4, 7, seed=2).requires_grad_()
    before = divergence(student_NV, teacher_NV, beta).sum()
    (gradient_NV,) = torch.autograd.grad(before, student_NV)
    after = divergence(student_NV - 0.1 * gradient_NV, teacher_NV, beta).sum()
    assert 0 < after < before


def test_no_gradient_reaches_the_teacher(seeded_randn) -> None:
    student_NV, teacher_NV = seeded_randn(2, 5).requires_grad_(), seeded_randn(2, 5, seed=1).requires_grad_()
    divergence(student_NV, teacher_NV, 0.5).sum().backward()
    assert student_NV.grad is not None
    assert teacher_NV.grad is None


def test_by_chunks_it_is_the_same_and_so_is_every_gradient(monkeypatch, seeded_randn) -> None:
    head_VD, teacher_NE, teacher_head_VE = seeded_randn(13, 6), seeded_randn(10, 4, seed=3), seeded_randn(13, 4, seed=4)

    def run() -> list[torch.Tensor]:
        hidden_ND, head = seeded_randn(10, 6, seed=2).requires_grad_(), head_VD.clone().requires_grad_()
        found_N = head_divergence(hidden_ND, head, teacher_NE, teacher_head_VE, 1.0)
        (found_N * torch.arange(10)).sum().backward()
        assert hidden_ND.grad is not None
        assert head.grad is not None
        return [found_N.detach(), hidden_ND.grad, head.grad]

    whole = run()
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 13 * 3)  # three tokens at a time
    for cut, expected in zip(run(), whole, strict=True):
        assert_close(cut, expected, rtol=1e-5, atol=1e-5)
    assert_close(whole[0], divergence(seeded_randn(10, 6, seed=2) @ head_VD.T, teacher_NE @ teacher_head_VE.T, 1.0))
