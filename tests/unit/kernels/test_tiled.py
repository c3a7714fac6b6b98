"""Fixed-shape products are their references, and a token's bits do not depend on its company."""

import pytest
import torch
from torch.testing import assert_close

from sobre.kernels import cached, reference, tiled


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def experts(n, seed=0):
    chosen_NA = randn(n, 8, seed=seed).topk(3, dim=-1).indices
    return chosen_NA, randn(n, 3, seed=seed + 1).softmax(-1)


EXPERTS = (randn(8, 12, 20, seed=5), randn(8, 12, 20, seed=6), randn(8, 20, 12, seed=7))
OPS = {
    "linear": lambda x_ND: (x_ND, randn(24, 20, seed=2), randn(24, seed=3)),
    "router_scores": lambda x_ND: (x_ND, randn(8, 20, seed=2), "sigmoid"),
    "rms_norm": lambda x_ND: (x_ND, randn(20, seed=2), 1e-6),
    "swiglu": lambda x_ND: (x_ND, x_ND.flip(-1)),
    "heads_linear": lambda x_ND: (x_ND.unflatten(1, (4, 5)), randn(4, 5, 7, seed=2)),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("n", [1, 16, 37])
def test_every_product_is_its_reference_and_no_bit_depends_on_company(op, n):
    x_ND = randn(n, 20)
    whole = getattr(tiled, op)(*OPS[op](x_ND))
    assert_close(whole, getattr(reference, op)(*OPS[op](x_ND)), rtol=0, atol=1e-5)
    for first in range(0, n, 5):
        alone = getattr(tiled, op)(*OPS[op](x_ND[first : first + 1]))
        assert torch.equal(alone[0], whole[first])


def test_experts_are_their_reference_and_no_bit_depends_on_company():
    x_ND, (chosen_NA, weights_NA) = randn(37, 20), experts(37)
    whole = tiled.moe_ffn(x_ND, chosen_NA, weights_NA, *EXPERTS)
    assert_close(whole, reference.moe_ffn(x_ND, chosen_NA, weights_NA, *EXPERTS), rtol=0, atol=1e-4)
    for i in (0, 20, 36):
        one = slice(i, i + 1)
        assert torch.equal(tiled.moe_ffn(x_ND[one], chosen_NA[one], weights_NA[one], *EXPERTS)[0], whole[i])


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("call", [cached.cached_attention, tiled.cached_attention])
def test_attention_to_the_cache_is_its_reference_at_all_ages(groups, call):
    q_RTHK, k_RSGK, v_RSGW = randn(3, 4, 4, 6), randn(3, 9, groups, 6, seed=1), randn(3, 9, groups, 5, seed=2)
    ages_RT = torch.tensor([0, 3, 5])[:, None] + torch.arange(4)
    later_RTS = torch.zeros(3, 4, 9).masked_fill(torch.arange(9) > ages_RT[..., None], -torch.inf)
    expected = reference.cached_attention(q_RTHK, k_RSGK, v_RSGW, later_RTS, 0.4)
    assert_close(call(q_RTHK, k_RSGK, v_RSGW, later_RTS, 0.4), expected, rtol=0, atol=1e-5)
    for row, n_new in [(slice(0, 1), 4), (slice(2, 3), 1)]:  # a sequence by itself
        alone = call(q_RTHK[row, :n_new], k_RSGK[row], v_RSGW[row], later_RTS[row, :n_new], 0.4)
        assert_close(alone, expected[row, :n_new], rtol=0, atol=1e-5)


def test_rows_that_depend_on_their_neighbours_are_noticed(monkeypatch):
    assert tiled.rows_are_independent(20, 24, torch.float32, "cpu")
    honest = torch.nn.functional.linear
    monkeypatch.setattr(tiled.F, "linear", lambda x, w, b=None: honest(x, w, b) + 1e-6 * x.sum())
    assert not tiled.rows_are_independent(20, 24, torch.float32, "cpu")
