import pytest

from sobre.errors import ConfigError
from sobre.rl.config import CurriculumConfig, GRPOConfig, PublishedConfig, RLConfig


@pytest.mark.parametrize(
    ("cls", "keys", "message"),
    [
        (GRPOConfig, {"clip_low": 0.3}, "clip from 0.3 below to 0.28 above"),
        (GRPOConfig, {"refill_rounds": -1}, "refill_rounds=-1 must be at least 0"),
        (PublishedConfig, {"kl": -0.1}, "kl=-0.1 must be at least 0"),
        (PublishedConfig, {"clip": 0.0}, "clip from 0.0"),
        (CurriculumConfig, {"low": 0.9}, "low=0.9 and high=0.8"),
        (CurriculumConfig, {"memory": 1.0}, r"memory=1\.0"),
        (CurriculumConfig, {"difficulty": (0, 3)}, "difficulty"),
        (RLConfig, {"group_size": 1}, "group_size=1 must be at least 2"),
        (RLConfig, {"temperature": 0.0}, "greedy groups are all alike"),
        (RLConfig, {"n_minibatches": 17}, r"1\.\.n_prompts=16"),
    ],
)
def test_a_setting_that_cannot_be_says_what_would_fit(cls, keys, message) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**keys)


def test_the_clip_of_r1_is_a_setting_that_can_be() -> None:
    assert PublishedConfig(clip=10.0).clip == 10
