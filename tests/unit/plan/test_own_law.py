"""The law that we fitted ourselves: the fit finds what made the points, and says how sure it is."""

import random

import pytest

from sobre.plan.own_law import BAND, Fit, Point, expected, fit, left_out, own_law, spread

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


def test_the_committed_law_is_the_fit_of_its_own_cells():
    law = own_law()
    assert fit(law.points).to_dict() == pytest.approx(law.fit.to_dict(), rel=1e-3)
    assert spread(left_out(law.points)) == pytest.approx(law.error, rel=1e-2)
    assert law.error < 0.03


def test_a_prediction_says_its_span_and_where_it_leaves_what_was_measured():
    law = own_law()
    point = max(law.points, key=lambda p: p.flops)
    within = expected(point.n, point.d, point.flops)
    assert within.value == pytest.approx(law.bits(point.loss), rel=3 * law.error)
    assert within.low == pytest.approx(within.value * (1 - BAND * law.error))
    assert within.beyond == ""
    far = expected(point.n, 5 * point.d, 5 * point.flops)
    assert far.value < within.value
    assert "compute" in far.beyond
    assert "size" not in far.beyond
    assert expected(point.n, 50 * point.d, 50 * point.flops) is None
