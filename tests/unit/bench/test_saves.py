"""The benchmark of saved states: what is read back is what was saved, and a wait is told from a step that is slow."""

import jsonschema
import pytest

from sobre.bench import saves
from sobre.bench.config import SavesBench
from sobre.bench.timing import Timing
from sobre.errors import RunError
from sobre.models.config import ModelConfig
from sobre.schemas import schema


@pytest.fixture
def tiny(nano_config: ModelConfig) -> SavesBench:
    return SavesBench(model=nano_config, rows=2, seq_len=8, rounds=2, warmup=0)


def test_a_result_follows_the_schema_and_judges_the_waits_alone(
    tiny: SavesBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = iter([Timing(s, s) for s in (1.0, 0.02, 3.0, 0.02)] + [Timing(s, s) for s in (0.02, 3.0, 0.02, 1.0)])

    def timed(work) -> Timing:
        work()
        return next(turns)

    monkeypatch.setattr(saves, "time_once", timed)
    found = saves.bench(tiny, lambda line: None)
    assert found is not None
    document = found.document()
    jsonschema.validate(document, schema("bench"))
    waits, beside = document["ratios"]
    assert waits["rounds"] == [pytest.approx(1 / 1.04)] * 2
    assert waits["target"] == pytest.approx(1 / 1.05)
    assert beside["rounds"] == [pytest.approx(1 / 3)] * 2
    assert beside["target"] is None
    assert document["check"][0]["value"] == 0


def test_a_state_that_is_read_back_as_another_ends_the_benchmark(
    tiny: SavesBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saves, "load_state", lambda *_, **__: None)
    with pytest.raises(RunError, match="tensors of a state read back that are others"):
        saves.bench(tiny, lambda line: None)
