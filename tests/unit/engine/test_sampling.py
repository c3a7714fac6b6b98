import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sobre.engine.request import SamplingParams
from sobre.engine.sampling import Choice, keys, mix64, sample, uniforms
from sobre.kernels.draw import invert


def params(**given):
    return SamplingParams(max_tokens=1, **given)


def draw(logits_RV, given, positions=None, run_seed=0):
    rows, vocab_size = logits_RV.shape
    given = given if isinstance(given, list) else [given] * rows
    positions = np.arange(rows) if positions is None else positions
    return sample(logits_RV, Choice.of(given, run_seed, vocab_size, "cpu"), positions)[:2]


def chi_square(counts, probs):
    """Sum of squared deviations over expectations, and its degrees of freedom; classes expected below 5 are pooled."""
    expected = probs * counts.sum()
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]]).clamp_min(1e-9)
    return float(((observed - expected) ** 2 / expected).sum()), len(observed) - 1


def test_the_hash_is_splitmix64():
    # first outputs of the published generator for seed 1234567
    states = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniform_numbers_are_keyed_by_run_seed_request_seed_and_position():
    positions = np.arange(1000)
    one = uniforms(keys(0, [1] * 1000), positions)
    assert len(set(one.tolist())) == 1000
    for others in (uniforms(keys(0, [2] * 1000), positions), uniforms(keys(1, [1] * 1000), positions)):
        assert not set(one.tolist()) & set(others.tolist())
        assert abs(np.corrcoef(one, others)[0, 1]) < 0.1
    assert one.min() >= 0
    assert one.max() < 1
    assert abs(one.mean() - 0.5) < 3 * (1 / 12 / 1000) ** 0.5


def test_seeds_of_any_size_and_sign_are_taken():
    assert len(set(keys(-1, [0, -1, 2**63, 2**64 - 2, 7**40]).tolist())) == 5


@pytest.mark.parametrize("vocab_size", [7, 64, 300])
@pytest.mark.parametrize(
    "given", [{}, {"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.7}, {"temperature": 1.5, "top_k": 6, "top_p": 0.9}]
)
@pytest.mark.slow
def test_draws_follow_the_exact_distribution(vocab_size, given):
    n = 20_000
    logits_V = torch.randn(vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 2
    tokens_R, logprobs_R = draw(logits_V.expand(n, -1), params(seed=3, **given))
    exact_V = exact_distribution(logits_V, given)
    statistic, freedom = chi_square(tokens_R.bincount(minlength=vocab_size).double(), exact_V)
    assert statistic < freedom + 4 * (2 * max(freedom, 1)) ** 0.5
    assert (exact_V[tokens_R] > 0).all()
    assert_close(logprobs_R, exact_V[tokens_R].log(), rtol=0, atol=1e-6)


def test_what_the_filters_left_is_told_of_the_rows_that_have_some():
    probs = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    given = [params(top_p=0.69), params(), params(top_k=3), params(top_p=0.5, temperature=0.0), params(min_p=0.3)]
    choice = Choice.of(given, 0, 5, "cpu", keeps=True)
    tokens_R, _, kept = sample(probs.log().expand(5, -1).clone(), choice, np.arange(5))
    assert {row: ids.tolist() for row, ids in kept.items()} == {0: [1, 3], 2: [1, 3, 4], 4: [1, 3, 4]}
    assert all(int(tokens_R[row]) in ids for row, ids in kept.items())
    assert sample(probs.log().expand(5, -1).clone(), Choice.of(given, 0, 5, "cpu"), np.arange(5))[2] == {}


def exact_distribution(logits_V, given):
    """Temperature, then top_k, then top_p, token by token in float64."""
    probs = (logits_V.double() / given.get("temperature", 1.0)).softmax(-1)
    ranked = probs.argsort(descending=True).tolist()[: given.get("top_k") or len(probs)]
    total, mass, kept = sum(probs[t] for t in ranked), 0.0, []
    for token in ranked:
        kept.append(token)
        mass += probs[token]
        if mass >= given.get("top_p", 1.0) * total:
            break
    exact = torch.zeros_like(probs)
    exact[kept] = probs[kept]
    return exact / exact.sum()


def test_a_token_of_tiny_probability_is_drawn_exactly_when_the_number_falls_on_it():
    weights = torch.full((1, 200), 1e-12)
    weights[0, 0] = 1.0
    for token in (1, 63, 64, 199):
        number = (1.0 + (token - 0.5) * 1e-12) / (1.0 + 199e-12)
        chosen, _ = invert(weights, torch.tensor([number], dtype=torch.float64))
        assert chosen.item() == token


def test_the_ends_of_the_unit_interval_take_the_first_and_last_token_with_any_weight():
    weights = torch.zeros(2, 130)
    weights[:, [3, 100]] = 0.5
    chosen, totals = invert(weights, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert chosen.tolist() == [3, 100]
    assert totals.tolist() == [1.0, 1.0]


def test_temperature_zero_takes_the_largest_logit_and_reports_its_softmax():
    logits_RV = torch.randn(5, 90, generator=torch.Generator().manual_seed(0))
    tokens_R, logprobs_R = draw(logits_RV, params(temperature=0.0, top_k=2, seed=9))
    assert_close(tokens_R, logits_RV.argmax(-1))
    assert_close(logprobs_R, logits_RV.double().log_softmax(-1).amax(-1), rtol=0, atol=1e-6)


def test_top_k_keeps_every_token_that_ties_with_the_last_one():
    logits_V = torch.tensor([2.0, 1.0, 1.0, 0.0])
    tokens_R, logprobs_R = draw(logits_V.expand(500, -1), params(top_k=2))
    assert set(tokens_R.tolist()) == {0, 1, 2}
    assert_close(logprobs_R, logits_V[:3].double().log_softmax(-1)[tokens_R], rtol=0, atol=1e-6)


def test_top_p_reaches_past_the_shortlist_of_a_flat_distribution():
    logits_RV = torch.linspace(0, 0.1, 2000).expand(3000, -1)
    tokens_R, _ = draw(logits_RV, params(top_p=0.5))
    probs_V = logits_RV[0].double().softmax(-1)
    first_kept = 2000 - int(torch.searchsorted(probs_V.flip(0).cumsum(0), 0.5)) - 1
    assert first_kept <= tokens_R.min() < first_kept + 10


def test_a_row_draws_the_same_whoever_shares_its_batch():
    generator = torch.Generator().manual_seed(0)
    rows, vocab_size = 40, 333
    logits_RV = torch.randn(rows, vocab_size, generator=generator) * 3
    kinds = [{}, {"temperature": 0.0}, {"temperature": 0.7}, {"top_k": 300}, {"top_p": 0.9}, {"top_k": 9, "top_p": 0.8}]
    given = [params(seed=n, **kinds[n % len(kinds)]) for n in range(rows)]
    positions = np.arange(rows) * 3
    together = draw(logits_RV, given, positions)
    for size in (1, 3):
        for first in range(0, rows, size):
            part = slice(first, first + size)
            tokens_R, logprobs_R = draw(logits_RV[part], given[part], positions[part])
            assert tokens_R.tolist() == together[0][part].tolist()
            assert_close(logprobs_R, together[1][part], rtol=0, atol=1e-12)


def test_logits_of_minus_infinity_are_never_drawn():
    logits_RV = torch.full((200, 70), -math.inf)
    logits_RV[:, [5, 66]] = 0.0
    tokens_R, logprobs_R = draw(logits_RV, params())
    assert set(tokens_R.tolist()) == {5, 66}
    assert_close(logprobs_R, torch.full((200,), math.log(0.5), dtype=torch.float64), rtol=0, atol=1e-6)


def test_logits_that_are_no_numbers_show_as_such_in_the_log_probability():
    logits_RV = torch.zeros(3, 70)
    logits_RV[1, 4] = math.nan
    for given in (params(), params(temperature=0.0), params(top_p=0.5)):
        _, logprobs_R = draw(logits_RV, given)
        assert logprobs_R.isnan().tolist() == [False, True, False]


def test_no_global_generator_is_touched():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    draw(torch.zeros(4, 9), params(top_p=0.5))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
