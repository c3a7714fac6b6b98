"""DeepSeekMoE against the formulas of DeepSeek-V3, 2.1.2, written out by hand."""

import pytest
import torch
from torch.testing import assert_close

from sobre.models.config import MoEConfig
from sobre.models.moe import MoE, Router, local_dispatch
from sobre.models.step import StepInput


def router_of(seed: int = 0, d_model: int = 16, **keys: object) -> Router:
    router = Router(MoEConfig(**keys), d_model)
    torch.nn.init.normal_(router.weight_ED, generator=torch.Generator().manual_seed(seed))
    return router


def tokens(n: int, d: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def load(router: Router, x_ND: torch.Tensor) -> torch.Tensor:
    return router(x_ND, step_of(len(x_ND))).experts_NA.flatten().bincount(minlength=router.cfg.n_experts)


def step_of(*lengths: int) -> StepInput:
    return StepInput(torch.zeros(sum(lengths), dtype=torch.long), lengths=lengths)


@pytest.mark.parametrize("n_active", [1, 2, 4])
def test_bias_steers_the_choice_but_not_the_weight(n_active):
    router, x_ND = router_of(n_experts=4, n_active=n_active, route_scale=2.5), tokens(8)
    router.bias_E[3] = 10.0
    routing = router(x_ND, step_of(8))
    assert (routing.experts_NA == 3).any(-1).all()
    raw_NA = (x_ND @ router.weight_ED.T).sigmoid().gather(-1, routing.experts_NA)
    assert_close(routing.weights_NA, 2.5 * raw_NA / raw_NA.sum(-1, keepdim=True))


def test_weights_without_normalisation_are_the_scaled_scores():
    router, x_ND = router_of(n_experts=6, n_active=2, norm_weights=False, route_scale=3.0), tokens(5)
    routing = router(x_ND, step_of(5))
    assert_close(routing.weights_NA, 3.0 * (x_ND @ router.weight_ED.T).sigmoid().gather(-1, routing.experts_NA))


def test_closed_groups_are_never_chosen_even_when_every_open_score_is_negative():
    router, x_ND = router_of(n_experts=8, n_active=2, n_groups=4, n_active_groups=1), tokens(32)
    router.bias_E.fill_(-5.0)  # a mask by zero would now prefer the closed groups
    experts_NA = router(x_ND, step_of(32)).experts_NA
    steered = (x_ND @ router.weight_ED.T).sigmoid() + router.bias_E
    best_group = steered.view(32, 4, 2).sum(-1).argmax(-1)  # two experts a group: the sum of the top 2 is the sum
    assert torch.equal(experts_NA // 2, best_group[:, None].expand(-1, 2))


def test_a_group_scores_by_the_sum_of_its_two_best():
    router = router_of(n_experts=6, n_active=1, n_groups=2, n_active_groups=1, d_model=6)
    with torch.no_grad():
        router.weight_ED.copy_(torch.eye(6))
    # group 0 has the single best expert, group 1 the better pair
    x_ND = torch.tensor([[3.0, -9.0, -9.0, 2.0, 2.0, -9.0]])
    assert router(x_ND, step_of(1)).experts_NA.item() in (3, 4)


def test_the_router_works_in_float32_whatever_the_activations_are():
    router, x_ND = router_of(n_experts=64, n_active=4), tokens(200).bfloat16()
    router_bf16_in = router(x_ND, step_of(200))
    router_fp32_in = router(x_ND.float(), step_of(200))
    assert torch.equal(router_bf16_in.experts_NA, router_fp32_in.experts_NA)
    assert router_bf16_in.weights_NA.dtype == torch.float32


def test_rebalancing_moves_each_bias_by_the_speed_against_its_load():
    router = router_of(n_experts=4, n_active=1, bias_speed=0.01)
    router.rebalance(torch.tensor([10, 4, 6, 0]))  # mean 5
    assert_close(router.bias_E, torch.tensor([-0.01, 0.01, -0.01, 0.01]))
    router.rebalance(torch.tensor([5, 5, 5, 5]))
    assert_close(router.bias_E, torch.tensor([-0.01, 0.01, -0.01, 0.01]))


def test_rebalancing_evens_out_a_skewed_load():
    router, x_ND = router_of(n_experts=8, n_active=2, bias_speed=0.002), tokens(2000) + 0.5
    before = load(router, x_ND).float()
    for _ in range(500):
        router.rebalance(load(router, x_ND))
    after = load(router, x_ND).float()
    assert before.max() / before.mean() > 1.5
    assert after.max() / after.mean() < 1.1


@pytest.mark.parametrize("lengths", [(6, 6), (5, 9)])
def test_balance_loss_is_alpha_times_f_times_p_summed_over_sequences(lengths):
    router, x_ND = router_of(n_experts=4, n_active=2, balance_alpha=0.01), tokens(sum(lengths))
    router.bias_E.copy_(torch.tensor([3.0, 0, 0, 0]))  # f counts by the scores, not by the steered choice
    expected = 0.0
    for x_TD in x_ND.split(lengths):
        s_TE = (x_TD @ router.weight_ED.T).sigmoid()
        picked_TE = torch.zeros_like(s_TE).scatter_(-1, s_TE.topk(2).indices, 1.0)
        f_E = picked_TE.sum(0) * 4 / (2 * len(x_TD))
        p_E = (s_TE / s_TE.sum(-1, keepdim=True)).mean(0)
        expected = expected + 0.01 * (f_E * p_E).sum()
    router.train()
    assert_close(router(x_ND, step_of(*lengths)).balance_loss, expected)
    assert router.eval()(x_ND, step_of(*lengths)).balance_loss is None


def test_the_layer_is_the_weighted_sum_of_its_experts_and_the_shared_one():
    moe = MoE(MoEConfig(n_experts=5, n_active=2, d_expert=8, n_shared=2), 16, local_dispatch).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    x_ND, step = tokens(7), step_of(7)
    y_ND, routing = moe(x_ND, step)
    expected_ND = moe.shared(x_ND)  # no gate, no scale
    for n in range(7):
        for weight, e in zip(routing.weights_NA[n], routing.experts_NA[n], strict=True):
            inner = torch.nn.functional.silu(moe.gate_EFD[e] @ x_ND[n]) * (moe.up_EFD[e] @ x_ND[n])
            expected_ND[n] += weight * (moe.down_EDF[e] @ inner)
    assert_close(y_ND, expected_ND, rtol=1e-4, atol=1e-4)


def test_a_dispatch_of_ones_own_is_used():
    calls = []

    def dispatch(x_ND, experts_NA, weights_NA, gate_EFD, up_EFD, down_EDF):
        calls.append(experts_NA.shape)
        return torch.zeros_like(x_ND)

    moe = MoE(MoEConfig(n_experts=4, n_active=2, d_expert=8, n_shared=0), 16, dispatch)
    torch.nn.init.normal_(moe.router.weight_ED)
    assert moe(tokens(3), step_of(3))[0].abs().sum() == 0
    assert calls == [(3, 2)]
