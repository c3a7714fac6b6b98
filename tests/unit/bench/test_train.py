"""The training benchmark compares what it says it compares, and refuses to time what differs."""

from dataclasses import replace

import jsonschema
import pytest
import torch

from sobre.bench import memory, ours, peer, train
from sobre.bench.config import TrainBench
from sobre.bench.table import table
from sobre.errors import ConfigError, RunError
from sobre.models.checkpoint import save_model
from sobre.schemas import schema

pytest.importorskip("transformers")


@pytest.fixture
def tiny(nano_config):
    return TrainBench(model=nano_config, rows=2, seq_len=12, rounds=2, warmup=1, contestants=("sobre", "transformers"))


def saved(cfg, tmp_path):
    model = ours.build(cfg.model, cfg.seed)
    save_model(model, tmp_path)
    return model, peer.load_peer(tmp_path)


def test_the_same_weights_pass_and_each_changed_part_is_noticed(tiny, tmp_path):
    rows_BT1 = train.random_rows(tiny)
    model, theirs = saved(tiny, tmp_path)
    lines = train.compare(model, theirs, rows_BT1)
    assert [line["value"] <= line["limit"] for line in lines] == [True] * 3
    with torch.no_grad():
        theirs.model.layers[1].mlp.experts.down_proj[0] += 0.1
    with pytest.raises(RunError, match="largest difference of a logit.*nothing was timed"):
        train.compare(model, theirs, rows_BT1)


def test_gradients_are_compared_and_not_only_values(tiny, tmp_path, monkeypatch):
    rows_BT1 = train.random_rows(tiny)
    model, theirs = saved(tiny, tmp_path)
    honest = peer.causal_loss
    # the same value, a gradient of another size
    monkeypatch.setattr(
        peer, "causal_loss", lambda *a, **k: (lambda loss: loss.detach() + 2 * (loss - loss.detach()))(honest(*a, **k))
    )
    with pytest.raises(RunError, match="gradient"):
        train.compare(model, theirs, rows_BT1)


def test_the_balance_loss_that_transformers_lacks_is_left_out_of_the_comparison_only(tiny):
    loud = replace(tiny.model, ffn=replace(tiny.model.ffn, balance_alpha=10.0))
    model = ours.build(loud, 0)
    assert ours.plain(model).cfg.ffn.balance_alpha == 0.0
    assert model.cfg.ffn.balance_alpha == 10.0


def test_both_sides_learn_alike_from_the_same_rows(tiny, tmp_path):
    rows_BT1 = train.random_rows(tiny)
    model, theirs = saved(tiny, tmp_path)
    mine = ours.training_step(model, rows_BT1, optimizer=ours.make_optimizer(model, "adamw", 1e-3))
    other = peer.training_step(theirs, rows_BT1, lr=1e-3, bf16=False)
    pairs = [(mine(), other()) for _ in range(4)]
    assert pairs[-1][0] < pairs[0][0] - 1e-3
    for a, b in pairs:
        assert a == pytest.approx(b, abs=2e-3)


@pytest.mark.slow
def test_a_whole_result_follows_the_schema_and_the_table_shows_it(tiny):
    cfg = replace(tiny, contestants=("sobre", "transformers", "dense", "sobre muon", "dense muon"))
    document = train.bench(cfg, lambda line: None).document()
    jsonschema.validate(document, schema("bench"))
    assert [len(round_) for round_ in document["rounds"]] == [5, 5]
    assert {(r["of"], r["over"]) for r in document["ratios"]} == {
        ("sobre", "transformers"),
        ("sobre", "dense"),
        ("sobre muon", "dense muon"),
    }
    assert document["losses"].keys() == document["medians"].keys()
    assert abs(document["losses"]["sobre"] - document["losses"]["transformers"]) < 0.02
    assert "sobre / transformers" in table(document)


def test_unknown_contestants_and_clones_are_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="contestants=.*must be some of sobre, transformers"):
        replace(tiny, contestants=("sobre", "keras"))
    with pytest.raises(ConfigError, match="no clone of nanochat"):
        train.bench(replace(tiny, contestants=("sobre",), nanochat=str(tmp_path)), lambda line: None)


@pytest.mark.slow
def test_the_memory_of_each_side_is_taken_in_a_process_of_its_own(tiny, tmp_path):
    saved(tiny, tmp_path)
    ballast = b"x" * (1200 * 2**20)  # ours is no part of theirs
    found = memory.peaks(tiny, tmp_path)
    assert found.keys() == {"sobre", "transformers"}
    for side in found.values():
        assert 0 < side["before_mib"] <= side["peak_mib"] < len(ballast) / 2**20
        assert side["grown_mib"] == side["peak_mib"] - side["before_mib"]
