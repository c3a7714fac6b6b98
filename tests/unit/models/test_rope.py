"""Rotary tables against hand-computed values, and YaRN at its published numbers."""

import math

import pytest
import torch
from torch.testing import assert_close

from sobre.models.config import RopeConfig, YarnConfig
from sobre.models.rope import Rope, frequencies, softmax_factor

V3 = RopeConfig(theta=10_000.0, yarn=YarnConfig())


def test_plain_frequencies_fall_from_one_by_powers_of_theta():
    assert_close(frequencies(RopeConfig(), 8), torch.tensor([1.0, 10**-1.0, 10**-2.0, 10**-3.0]))


def test_yarn_keeps_fast_pairs_and_divides_slow_ones_by_the_factor():
    plain, scaled = frequencies(RopeConfig(), 64), frequencies(V3, 64)
    # beta 32 and 1 at length 4096 and dim 64: pairs below 10 are kept, pairs from 23 on divided (floor, ceil)
    assert_close(scaled[:11], plain[:11])
    assert_close(scaled[23:], plain[23:] / 40)
    assert ((scaled[11:23] < plain[11:23]) & (scaled[11:23] > plain[11:23] / 40)).all()


def test_yarn_softmax_factor_of_v3_is_the_published_one():
    assert softmax_factor(V3) == pytest.approx(1.3689**2, rel=1e-4)
    assert softmax_factor(RopeConfig()) == 1.0


def test_the_table_factor_is_one_when_both_mscales_agree_and_their_ratio_otherwise():
    assert_close(Rope(V3, 64, 2).cos_T2[0], torch.ones(32))
    uneven = RopeConfig(yarn=YarnConfig(mscale=0.707, mscale_all_dim=0.0))
    assert_close(Rope(uneven, 64, 2).cos_T2[0], torch.full((32,), 0.1 * 0.707 * math.log(40) + 1))


def test_scores_depend_on_the_distance_alone():
    from sobre.kernels import select

    rope = Rope(RopeConfig(), 16, 100)
    q, k = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(0))

    def score(a: int, b: int) -> torch.Tensor:
        rotated_q = select.rope(q, *rope(torch.tensor([a])), True)
        return (rotated_q * select.rope(k, *rope(torch.tensor([b])), True)).sum()

    assert_close(score(7, 3), score(94, 90), rtol=1e-4, atol=1e-5)
    assert not torch.isclose(score(7, 3), score(7, 4), rtol=1e-2)
