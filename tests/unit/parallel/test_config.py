"""Layouts that cannot be are refused with the reason and with what would fit."""

import pytest

from sobre.errors import ConfigError
from sobre.parallel.config import ParallelConfig


@pytest.mark.parametrize(
    ("layout", "n_processes", "n_experts", "message"),
    [
        ({"shards": 3}, 8, 8, r"parallel.shards=3 does not divide the 8 processes of this run; it fits: 1, 2, 4, 8"),
        ({"experts": 16}, 8, 16, "parallel.experts=16 does not divide the 8 processes"),
        ({"experts": 4}, 8, 6, "parallel.experts=4 does not divide the 6 experts of a layer evenly"),
        ({"experts": 2}, 8, 0, "the model is dense and has none to divide"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(layout, n_processes, n_experts, message) -> None:
    with pytest.raises(ConfigError, match=message):
        check(ParallelConfig(**layout), n_processes, n_experts)


def check(cfg: ParallelConfig, n_processes: int, n_experts: int) -> None:
    cfg.check(n_processes)
    cfg.check_experts(n_experts)


@pytest.mark.parametrize("layout", [{}, {"shards": 0}, {"shards": 4, "experts": 8}, {"experts": 2, "zero": 1}])
def test_a_layout_that_can_be_passes(layout) -> None:
    cfg = ParallelConfig(**layout)
    check(cfg, 8, 16)
    assert cfg.is_divided == bool(layout)


def test_no_shards_means_as_many_as_there_are_processes() -> None:
    assert ParallelConfig(shards=0).shards_of(6) == 6


@pytest.mark.parametrize("wrong", [{"shards": -1}, {"experts": 0}])
def test_sizes_below_what_can_be_are_refused(wrong) -> None:
    with pytest.raises(ConfigError, match="must be"):
        ParallelConfig(**wrong)
