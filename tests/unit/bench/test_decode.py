"""The decoding benchmark: ties may fall either way, anything else is an error; lengths are what was asked."""

import jsonschema
import pytest
import torch

from sobre.bench import decode, ours
from sobre.bench.config import DecodeBench
from sobre.errors import RunError
from sobre.schemas import schema

transformers = pytest.importorskip("transformers")


@pytest.fixture
def tiny(nano_config):
    return DecodeBench(model=nano_config, rounds=1, warmup=0, batches=(2,), prompt=5, new=6, spread=(2, 9))


@pytest.mark.slow
def test_a_whole_result_follows_the_schema_and_pairs_like_with_like(tiny):
    document = decode.bench(tiny, lambda line: None).document()
    jsonschema.validate(document, schema("bench"))
    assert [line["share_compared"] > 0.5 for line in document["check"]] == [True, True]
    variants = [name for name in document["medians"] if name.split()[1] in decode.VARIANTS]
    assert variants == ["sobre deterministic 2", "sobre int8 2"]
    assert any("int4 is left out" in note for note in document["notes"])
    shares = next(note for note in document["notes"] if note.startswith("share of "))
    assert "equal 2 float32 " in shares
    assert "int8 2 " in shares
    assert any(note.startswith("llama.cpp is left out: ") for note in document["notes"])
    assert len(document["medians"]) == 2 * 2 * 2 + len(variants)
    for found in document["ratios"]:
        if found["of"] in variants:
            assert found["over"].startswith("sobre equal 2")
            continue
        assert found["of"].split()[:3] == ["sobre", *found["over"].split()[1:3]]


def test_only_tokens_that_were_asked_for_count_on_both_sides(tiny):
    document = decode.bench(tiny, lambda line: None).document()
    asked = sum(decode.new_tokens(tiny, "spread", 2))
    for side in ("sobre", "transformers"):
        found = document["medians"][f"{side} spread 2 float32"]
        assert found["per_s"] * found["wall_s"] == pytest.approx(asked)


def test_spread_lengths_lie_in_their_range_and_do_not_change(tiny):
    lengths = decode.new_tokens(tiny, "spread", 200)
    assert set(lengths) == set(range(2, 10))
    assert lengths == decode.new_tokens(tiny, "spread", 200)


def test_our_side_gives_every_request_its_own_number_of_tokens(tiny):
    rows = ours.generation(ours.build(tiny.model, 0), decode.random_prompts(tiny, 3), [4, 1, 7])()
    assert [len(row) for row in rows] == [4, 1, 7]


def test_a_swapped_tie_passes_and_another_token_is_an_error(tiny, monkeypatch):
    logits_V = torch.tensor([0.0, 1.0, 1.0 - 1e-5, 0.5])
    monkeypatch.setattr(ours, "logits_at", lambda model, ids: logits_V)
    tie, share = decode.compare_greedy([[9]], [[3, 1, 2]], [[3, 2, 0]], exact=None)
    assert tie == pytest.approx(1e-5, rel=0.1)
    assert share == pytest.approx(1 / 3)
    wrong, _ = decode.compare_greedy([[9]], [[3, 1, 2]], [[3, 3, 0]], exact=None)
    assert wrong == 0.5
    monkeypatch.setattr(decode, "compare_greedy", lambda *a: (wrong, share))
    with pytest.raises(RunError, match="swapped places"):
        decode.bench(tiny, lambda line: None)


def test_rows_of_unequal_length_are_not_compared_at_all():
    with pytest.raises(ValueError, match="3 and 2 tokens"):
        decode.first_difference([1, 2, 3], [1, 2])
