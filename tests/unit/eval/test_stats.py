"""Intervals and estimators against hand-computed values and against enumeration."""

from itertools import combinations

import pytest

from sobre.eval.stats import bootstrap, paired, pass_at_k, wilson


def test_wilson_interval_of_eight_in_ten_is_the_textbook_one():
    share = wilson(8, 10)
    assert (share.value, round(share.ci_low, 4), round(share.ci_high, 4)) == (0.8, 0.4902, 0.9433)


def test_wilson_interval_stays_inside_zero_and_one_and_is_not_empty_at_the_ends():
    none, every = wilson(0, 20), wilson(20, 20)
    assert none.ci_low == 0.0
    assert round(none.ci_high, 4) == 0.1611
    assert round(every.ci_low, 4) == 0.8389
    assert every.ci_high == 1.0


def test_of_no_problems_nothing_is_known():
    share = wilson(0, 0)
    assert (share.ci_low, share.ci_high) == (0.0, 1.0)


def test_more_right_than_asked_is_refused():
    with pytest.raises(ValueError, match="right=3"):
        wilson(3, 2)


@pytest.mark.parametrize(("n", "right", "k"), [(5, 2, 1), (5, 2, 3), (6, 1, 4), (4, 4, 2), (4, 0, 4)])
def test_pass_at_k_is_the_share_of_all_draws_without_return_that_hold_a_right_one(n, right, k):
    draws = list(combinations(range(n), k))
    share = sum(min(draw) < right for draw in draws) / len(draws)
    assert pass_at_k(n, right, k) == pytest.approx(share)


def test_pass_at_k_of_more_draws_than_samples_is_refused():
    with pytest.raises(ValueError, match="pass@3"):
        pass_at_k(2, 1, 3)


def test_bootstrap_interval_of_a_share_is_near_the_normal_one_and_repeats_with_its_seed():
    values = [1.0] * 60 + [0.0] * 40
    low, high = bootstrap(values, seed=1)
    assert (low, high) == bootstrap(values, seed=1)
    assert low == pytest.approx(0.504, abs=0.02)
    assert high == pytest.approx(0.696, abs=0.02)


def test_bootstrap_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        bootstrap([], seed=0)


def test_paired_counts_only_problems_on_which_the_two_differ():
    a = [True] * 50 + [False] * 40 + [True] * 1 + [False] * 9
    b = [True] * 50 + [False] * 40 + [False] * 1 + [True] * 9
    result = paired(a, b)
    assert (result.only_a, result.only_b, result.difference) == (1, 9, 0.08)
    assert result.p_value == pytest.approx(2 * (1 + 10) / 1024)
    assert result.ci_low == pytest.approx(0.08 - 1.959964 * (10 - 64 / 100) ** 0.5 / 100, abs=1e-6)


def test_paired_is_antisymmetric_and_equal_models_do_not_differ():
    a, b = [True, False, True, False, False], [False, False, True, True, True]
    assert paired(a, b).difference == -paired(b, a).difference
    assert paired(a, b).p_value == paired(b, a).p_value
    assert (paired(a, a).difference, paired(a, a).p_value) == (0.0, 1.0)


def test_paired_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="2 and 1"):
        paired([True, True], [True])
