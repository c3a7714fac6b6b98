"""The benchmark of families: both sides run the same weights, and the prompt's pass is not counted in decoding."""

from dataclasses import replace

import jsonschema
import pytest

from sobre.bench import families
from sobre.bench.config import FamiliesBench
from sobre.bench.shapes import FAMILY_SHAPES
from sobre.bench.timing import Timing
from sobre.errors import ConfigError, RunError
from sobre.models.families.table import FAMILIES
from sobre.schemas import schema

transformers = pytest.importorskip("transformers")


def test_every_shape_is_one_that_its_family_accepts():
    by_type = {family.model_type: family for family in FAMILIES}
    assert by_type.keys() >= FAMILY_SHAPES.keys()
    assert all(by_type[name].accepts(shape) for name, shape in FAMILY_SHAPES.items())


@pytest.mark.slow
def test_a_result_follows_the_schema_and_has_both_sides(nano_config, monkeypatch):
    def by_a_clock_of_ours(works, **_):
        """Every work is really done; a decoded token is a second, a forward pass three."""
        for work in works.values():
            work()
        return [{name: Timing(seconds(name), seconds(name)) for name in works}]

    def seconds(name: str) -> float:
        last = name.split()[-1]
        return float(last) if last.isdigit() else 3.0

    monkeypatch.setattr(families, "interleave", by_a_clock_of_ours)
    cfg = FamiliesBench(
        families=("qwen3_moe", "llama"), rounds=1, warmup=0, seq_len=9, context=12, new=2, model=nano_config
    )
    document = families.bench(cfg, lambda line: None).document()
    jsonschema.validate(document, schema("bench"))
    assert [found["of"] for found in document["ratios"]] == ["sobre qwen3_moe", "sobre llama", "sobre decode at 12"]
    assert [found["target"] for found in document["ratios"]] == [1.0, 1.0, 3.0]
    assert all(line["value"] < 1e-4 for line in document["check"])
    assert document["medians"]["sobre decode at 12"]["wall_s"] == 2.0


def test_only_tokens_after_the_first_are_decoding(nano_config, monkeypatch):
    monkeypatch.setattr(
        families, "interleave", lambda works, **_: [{n: Timing(float(n.split()[1]), 1.0) for n in works}]
    )
    cfg = FamiliesBench(rounds=1, context=12, new=7, model=nano_config)
    (found,) = families._decoding(cfg, lambda line: None)
    assert {timing.wall_s for timing in found.values()} == {7.0}


@pytest.mark.parametrize(("wall_s", "cpu_s"), [(0.0, 0.1), (-0.001, 0.1), (0.1, -0.001)])
def test_a_difference_that_is_noise_is_no_figure(wall_s, cpu_s):
    with pytest.raises(RunError, match="raise --new"):
        families._less(Timing(1.0 + wall_s, 1.0 + cpu_s), Timing(1.0, 1.0))


def test_an_unknown_family_is_refused():
    with pytest.raises(ConfigError, match="must be some of deepseek_v3"):
        replace(FamiliesBench(), families=("gpt2",))
