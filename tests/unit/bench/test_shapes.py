"""The models of the benchmarks are what their names say."""

import pytest

from sobre.bench.config import DecodeBench
from sobre.bench.decode import weights_read
from sobre.bench.shapes import MIXTURE, QWEN3, SMALL, dense_twin
from sobre.models.config import DenseConfig, GQAConfig
from sobre.plan.count import params


def test_the_small_shape_has_twenty_million_parameters_of_which_five_are_active():
    count = params(SMALL)
    assert (count.total, count.active) == (19_935_584, 5_120_000)


def test_the_presets_of_decoding_are_the_shapes_that_they_are_named_after():
    assert round(params(MIXTURE).total, -5) == 257_900_000
    assert round(params(MIXTURE).active, -5) == 59_200_000
    assert params(QWEN3).total == 596_049_920  # what Qwen3-0.6B's own card and files hold
    assert DecodeBench(preset="qwen3-0.6b").shape is QWEN3
    assert DecodeBench().shape is SMALL


def test_a_step_reads_all_experts_only_when_many_tokens_choose():
    count = params(MIXTURE)
    assert weights_read(MIXTURE, 1) == pytest.approx(count.active)
    everything = count.total - count.by_part["embed"] - count.by_part["norms"]
    assert count.active < weights_read(MIXTURE, 16) < weights_read(MIXTURE, 4096) <= everything
    assert abs(weights_read(MIXTURE, 4096) / everything - 1) < 1e-3
    assert weights_read(QWEN3, 16) == count_of_matrices(QWEN3)


def count_of_matrices(cfg):
    """A tied model's matrices: everything but the norms."""
    return params(cfg).total - params(cfg).by_part["norms"]


def test_the_twin_is_dense_with_equal_active_parameters(nano_config):
    for cfg in (SMALL, nano_config):
        twin = dense_twin(cfg)
        assert isinstance(twin.ffn, DenseConfig)
        assert isinstance(twin.attention, GQAConfig)
        assert (twin.d_model, twin.n_layers, twin.vocab_size) == (cfg.d_model, cfg.n_layers, cfg.vocab_size)
        active = params(cfg).active
        assert abs(params(twin).active - active) <= 4 * 3 * cfg.d_model * cfg.n_layers
    assert abs(params(dense_twin(SMALL)).active / params(SMALL).active - 1) < 0.005
