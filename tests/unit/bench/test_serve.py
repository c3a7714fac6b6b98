"""The server's benchmark, on the smallest model: the file follows the schema, and every round has every contestant."""

from contextlib import nullcontext
from types import SimpleNamespace

import jsonschema
import pytest

from sobre.bench import overhead, serve, soak
from sobre.bench.config import ServeBench, SoakBench
from sobre.errors import RunError
from sobre.models.config import MLAConfig, ModelConfig, MoEConfig
from sobre.schemas import schema

MODEL = ModelConfig(
    vocab_size=300,
    d_model=32,
    n_layers=2,
    attention=MLAConfig(n_heads=2, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=8),
    ffn=MoEConfig(n_experts=4, n_active=2, d_expert=16, d_ff=48),
    max_len=128,
)


@pytest.mark.slow
def test_a_whole_result_follows_the_schema():
    cfg = ServeBench(model=MODEL, rounds=1, warmup=0, streams=4, prompt=4, long_prompt=64, new=6)
    document = serve.bench(cfg, lambda line: None).document()
    jsonschema.validate(document, schema("bench"))
    assert set(document["rounds"][0]) == {
        serve.ONE,
        "4 streams",
        serve.SHORT,
        serve.BESIDE,
        serve.WHOLE,
        serve.FIRST,
        serve.AGAIN,
    }
    assert document["medians"]["4 streams"]["per_s"] > 0
    for told in ("ready ", "target: 3 s", "bytes, all of its files (target: below 300,000)", "of a step of 4 rows"):
        assert any(told in note for note in document["notes"]), told
    assert [found["target"] for found in document["ratios"]] == [4.0, None, 0.5, 10.0]


def test_what_is_not_the_models_is_counted_as_overhead_and_nothing_stays_changed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(overhead, "process_time", lambda: now[0])
    place = SimpleNamespace(work=lambda: now.__setitem__(0, now[0] + 3))
    before = place.work
    with overhead.timed_within(((place, "work"),)) as spent:
        place.work()
        now[0] += 1
        place.work()
    assert (spent, now, place.work is before) == ([6.0], [7.0], True)


@pytest.mark.slow
def test_a_soak_leaves_nothing_behind_and_says_what_came():
    cfg = SoakBench(model=MODEL, streams=4, prompt=4, long_prompt=64, new=6, minutes=0.05)
    document = soak.bench(cfg, lambda line: None).document()
    jsonschema.validate(document, schema("bench"))
    values = {line["what"]: line["value"] for line in document["check"]}
    assert values["blocks held when nobody asks"] == values["choices open when nobody asks"] == 0
    assert all(kind in document["notes"][0] for kind in ("answered", "left early", "left in mid-stream", "0 failed"))


def test_a_block_that_stays_held_or_memory_that_grows_is_an_error(monkeypatch):
    server = type("Server", (), {"memory_bytes": lambda self: 100})()
    monkeypatch.setattr(soak, "started", lambda *_: nullcontext(server))
    monkeypatch.setattr(soak, "Asker", lambda *_: None)
    gauges = {"sobre_num_requests_open": 0.0, "sobre_kv_cache_blocks_held": 0.0}
    for memory, held, wrong in (([100] * 8, 1.0, "blocks held"), ([100] * 7 + [106], 0.0, "growth of the memory")):
        monkeypatch.setattr(soak.Client, "load", lambda self, say, memory=memory: memory)
        monkeypatch.setattr(soak, "quiet", lambda server, held=held: gauges | {"sobre_kv_cache_blocks_held": held})
        with pytest.raises(RunError, match=wrong):
            soak.bench(SoakBench(minutes=0.01), lambda line: None)
