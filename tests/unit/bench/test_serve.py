"""The server's benchmark, on the smallest model: the file follows the schema, and every round has every contestant."""

import jsonschema
import pytest

from sobre.bench import serve
from sobre.bench.config import ServeBench
from sobre.models.config import MLAConfig, ModelConfig, MoEConfig
from sobre.schemas import schema


@pytest.mark.slow
def test_a_whole_result_follows_the_schema():
    model = ModelConfig(
        vocab_size=300,
        d_model=32,
        n_layers=2,
        attention=MLAConfig(n_heads=2, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=8),
        ffn=MoEConfig(n_experts=4, n_active=2, d_expert=16, d_ff=48),
        max_len=128,
    )
    cfg = ServeBench(model=model, rounds=1, warmup=0, streams=4, prompt=4, long_prompt=64, new=6, soak_min=0.02)
    document = serve.bench(cfg, lambda line: None).document()
    jsonschema.validate(document, schema("bench"))
    assert set(document["rounds"][0]) == {
        serve.ONE,
        "4 streams",
        serve.SHORT,
        serve.BESIDE,
        serve.FIRST,
        serve.AGAIN,
    }
    assert document["medians"]["4 streams"]["per_s"] > 0
    assert any(note.startswith("ready ") for note in document["notes"])
    assert any(note.startswith("soak: ") for note in document["notes"])
