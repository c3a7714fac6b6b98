"""Layouts that cannot be are refused with the reason and with what would fit."""

import pytest

from sobre.errors import ConfigError
from sobre.models.config import (
    DenseConfig,
    GQAConfig,
    IndexerConfig,
    LightningConfig,
    MemoryConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
)
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
    ffn = MoEConfig(n_experts=n_experts) if n_experts else DenseConfig()
    cfg.check_model(ModelConfig(vocab_size=8, max_len=8, ffn=ffn))


def dense(attention: GQAConfig | MLAConfig, ffn: DenseConfig | MoEConfig) -> ModelConfig:
    return ModelConfig(vocab_size=8, max_len=8, attention=attention, ffn=ffn)


HEADS = GQAConfig(n_heads=4, n_kv_heads=2)


@pytest.mark.parametrize(
    ("tensor", "attention", "ffn", "message"),
    [
        (2, MLAConfig(), DenseConfig(), "parallel.tensor=2 divides the heads of grouped-query attention, .* is mla"),
        (2, HEADS, MoEConfig(), "this model has experts; take parallel.experts instead"),
        (4, HEADS, DenseConfig(), "parallel.tensor=4 does not divide n_kv_heads=2 evenly"),
        (2, HEADS, DenseConfig(d_ff=5), "parallel.tensor=2 does not divide d_ff=5 evenly"),
        (2, GQAConfig(qk_norm=True, norm_all_heads=True), DenseConfig(), "needs all heads in one place"),
    ],
)
def test_a_model_whose_heads_or_widths_cannot_be_divided_is_refused(tensor, attention, ffn, message) -> None:
    with pytest.raises(ConfigError, match=message):
        ParallelConfig(tensor=tensor).check_model(dense(attention, ffn))
    ParallelConfig(tensor=2).check_model(dense(HEADS, DenseConfig(d_ff=512)))


def test_tensor_leaves_fewer_processes_to_the_other_divisions() -> None:
    assert ParallelConfig(tensor=2, shards=0).shards_of(8) == 4
    with pytest.raises(ConfigError, match="parallel.shards=8 does not divide the 4 processes of 8 that are left"):
        ParallelConfig(tensor=2, shards=8).check(8)
    with pytest.raises(ConfigError, match="tensor=3 does not divide the 8 processes of this run"):
        ParallelConfig(tensor=3).check(8)


@pytest.mark.parametrize(
    "layout", [{}, {"shards": 0}, {"shards": 4, "experts": 8}, {"experts": 2, "shards": 2, "zero": 1}]
)
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


def test_a_pipeline_needs_a_layer_for_each_stage_and_asks_for_what_it_can_keep() -> None:
    model = ModelConfig(vocab_size=8, max_len=8, n_layers=3, n_mtp=1)
    ParallelConfig(pipeline=4).check_model(model)
    with pytest.raises(
        ConfigError, match="schedule=zbv cuts the model into 8 stages, and it has 3 layers and 1 of MTP"
    ):
        ParallelConfig(pipeline=4, schedule="zbv").check_model(model)
    with pytest.raises(ConfigError, match="parallel.zero=3 with pipeline=2: .* it fits: 1"):
        ParallelConfig(pipeline=2, shards=2).check(4)
    ParallelConfig(pipeline=2, shards=2, zero=1).check(4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"attention": LightningConfig(full_layers=(1,))}, "lightning attention reads a sequence from its beginning"),
        ({"attention": MLAConfig(q_rank=8, indexer=IndexerConfig())}, "sparse attention chooses among the keys"),
        ({"memory": MemoryConfig(layers=(0,), n_rows=7)}, "memory looks at the tokens before each"),
    ],
)
def test_a_model_that_needs_whole_sequences_has_no_context(model, message) -> None:
    ParallelConfig(context=2).check_model(ModelConfig(vocab_size=8, max_len=8))
    with pytest.raises(ConfigError, match=f"parallel.context=2: {message}"):
        ParallelConfig(context=2).check_model(ModelConfig(vocab_size=8, max_len=8, **model))


def test_a_context_divides_the_learners_and_is_not_for_pipelines() -> None:
    ParallelConfig(context=2, tensor=2, shards=0).check(8)
    with pytest.raises(ConfigError, match="parallel.context=3 does not divide the 4 processes of 8 that are left"):
        ParallelConfig(context=3, tensor=2).check(8)
    with pytest.raises(ConfigError, match="parallel.context=2 with pipeline=2: .* one of the two fits: 1"):
        ParallelConfig(context=2, pipeline=2).check(8)


@pytest.mark.parametrize(
    ("layout", "flags"),
    [({}, ""), ({"shards": 0}, " --parallel.shards 0"), ({"pipeline": 2}, " --parallel.pipeline 2")],
)
def test_several_processes_refuse_the_stage_that_runs_in_one(layout, flags) -> None:
    ParallelConfig(**layout).check_stages(["sft", "dpo"], 1)
    ParallelConfig(**layout).check_stages(["pretrain", "sft", "rl", "distill", "sft2", "rl2"], 2)
    with pytest.raises(ConfigError, match=f"dpo runs in one process, .* this run has 2{flags}: leave it out"):
        ParallelConfig(**layout).check_stages(["sft", "dpo"], 2)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"zero": 2}, "zero=2 says what of a shard stays whole, and shards=1 divides nothing"),
        ({"zero": 1, "pipeline": 2}, "zero=1 .* shards=1 divides nothing"),
        ({"schedule": "zbv"}, "schedule=zbv orders the micro-batches of a pipeline, and pipeline=1 is none"),
    ],
)
def test_what_would_change_nothing_is_refused(layout, message) -> None:
    with pytest.raises(ConfigError, match=message):
        ParallelConfig(**layout)
    ParallelConfig(shards=0, zero=1, pipeline=2, schedule="zbv")
