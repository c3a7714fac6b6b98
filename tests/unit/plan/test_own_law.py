"""The law that we fitted ourselves: the fit finds what made the points, and says how sure it is."""

import random

import pytest

from sobre.plan.own_law import Fit, Point, fit, left_out, spread

TRUE = Fit(e=1.5, a=40.0, alpha=0.4, b=100.0, beta=0.3)


def points(noise: float, seed: int = 0) -> list[Point]:
    rng = random.Random(seed)
    sizes = [(n, d) for n in (3e4, 1e5, 3e5, 9e5) for d in (1e5, 1e6, 1e7)]
    return [Point("", n, d, 6 * n * d, TRUE.loss(n, d) * (1 + rng.gauss(0, noise))) for n, d in sizes]


def test_the_fit_finds_the_constants_that_made_the_points():
    found = fit(points(0.0))
    assert found.to_dict() == pytest.approx(TRUE.to_dict(), rel=1e-6)
    assert max(map(abs, left_out(points(0.0)))) < 1e-6


def test_left_out_errors_are_about_as_large_as_the_noise():
    assert 0.005 < spread(left_out(points(0.01))) < 0.03


def test_a_term_is_left_out_before_it_becomes_negative():
    rising = [Point("", p.n, p.d, p.flops, 2.0 - 3e3 / p.n) for p in points(0.0)]
    found = fit(rising)
    assert min(found.e, found.a, found.b) >= 0
    assert found.loss(3e4, 1e6) == pytest.approx(found.loss(9e5, 1e6))
