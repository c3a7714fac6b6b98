"""An engine beside a divided model: it fetches the weights when it is asked for something, and once for each change."""

from dataclasses import fields

from sobre.engine.engine import EngineStats
from sobre.rl.shared_engine import SharedEngine
from sobre.runtime.processes import Processes


class Counting:
    """An engine without answers that counts how often its weights changed."""

    stats = EngineStats(**{field.name: 0 for field in fields(EngineStats)})
    weight_version = 0

    def weights_changed(self) -> None:
        self.weight_version += 1

    def generate(self, requests: list, enough: object = None) -> list:
        return []


def test_weights_are_fetched_before_the_first_answer_and_once_for_each_change() -> None:
    fetched: list[int] = []
    engine = SharedEngine(Counting(), Processes(), fetch=lambda: fetched.append(1))
    assert not fetched
    version = engine.weight_version
    engine.generate([])
    assert (len(fetched), engine.weight_version) == (1, version)
    engine.weights_changed()
    engine.weights_changed()
    assert len(fetched) == 1
    engine.generate([])
    assert (len(fetched), engine.weight_version) == (2, version + 1)


def test_an_engine_over_the_model_itself_hears_of_changes_at_once() -> None:
    inner = Counting()
    SharedEngine(inner, Processes()).weights_changed()
    assert inner.weight_version == 1
