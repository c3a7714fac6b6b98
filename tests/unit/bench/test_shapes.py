"""The models of the benchmarks are what their names say."""

from sobre.bench.shapes import SMALL, dense_twin
from sobre.models.config import DenseConfig, GQAConfig
from sobre.plan.count import params


def test_the_small_shape_has_twenty_million_parameters_of_which_five_are_active():
    count = params(SMALL)
    assert (count.total, count.active) == (19_935_584, 5_120_000)


def test_the_twin_is_dense_with_equal_active_parameters(nano_config):
    for cfg in (SMALL, nano_config):
        twin = dense_twin(cfg)
        assert isinstance(twin.ffn, DenseConfig)
        assert isinstance(twin.attention, GQAConfig)
        assert (twin.d_model, twin.n_layers, twin.vocab_size) == (cfg.d_model, cfg.n_layers, cfg.vocab_size)
        active = params(cfg).active
        assert abs(params(twin).active - active) <= 4 * 3 * cfg.d_model * cfg.n_layers
    assert abs(params(dense_twin(SMALL)).active / params(SMALL).active - 1) < 0.005
