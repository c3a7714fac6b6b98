import torch
from torch.testing import assert_close

from sobre.rl.advantage import advantages, flat_groups

REWARDS_XY = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.1, 1.1, 0.1, 1.1]])


def test_an_advantage_is_the_distance_to_the_group_mean() -> None:
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.0, 0.0, 0.0, 0.0], [-0.5, 0.5, -0.5, 0.5]])
    assert_close(advantages(REWARDS_XY, "centred"), expected)


def test_the_published_advantage_is_in_standard_deviations() -> None:
    # group 1: sum of squares 0.75, unbiased variance 0.25; group 3: sum of squares 1, variance 1/3
    root3 = 3**0.5
    expected = torch.tensor(
        [[1.5, -0.5, -0.5, -0.5], [0.0, 0.0, 0.0, 0.0], [-root3 / 2, root3 / 2, -root3 / 2, root3 / 2]]
    )
    assert_close(advantages(REWARDS_XY, "standardised"), expected)


def test_the_leave_one_out_advantage_is_the_distance_to_the_mean_of_the_others() -> None:
    expected = [[r - (sum(row) - r) / 3 for r in row] for row in REWARDS_XY.tolist()]
    assert_close(advantages(REWARDS_XY, "leave_one_out"), torch.tensor(expected))


def test_a_group_of_equal_rewards_is_flat_and_teaches_exactly_nothing() -> None:
    rewards_XY = torch.full((2, 7), 0.1)  # the mean of seven 0.1 is not 0.1 in float32
    rewards_XY[1, 3] = 1.1
    assert flat_groups(rewards_XY).tolist() == [True, False]
    for kind in ("grpo", "standardised"):
        assert advantages(rewards_XY, kind)[0].tolist() == [0.0] * 7
        assert_close(advantages(rewards_XY, kind).sum(1), torch.zeros(2), atol=1e-5, rtol=0)
