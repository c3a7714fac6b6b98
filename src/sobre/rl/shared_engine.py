"""One engine in every process: each answers its share of the requests, and all get all answers.

The seed of a request makes its answer, so who samples it changes nothing but the rounding of the model's sums.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from sobre.engine.engine import Engine, EngineStats
from sobre.engine.request import Output, Request
from sobre.runtime.processes import Processes


class SharedEngine:
    """What a rollout needs of an engine, over all processes; on one process, the engine itself."""

    def __init__(self, engine: Engine, processes: Processes, *, fetch: Callable[[], None] | None = None) -> None:
        """`fetch` brings the engine's own whole model up to date where the model in training is divided."""
        self._engine, self._processes, self._fetch = engine, processes, fetch
        self._is_stale = fetch is not None  # a resumed run has loaded other weights since
        self.stats = engine.stats
        """Of all processes together, but for the seconds, which are the slowest one's."""

    @property
    def weight_version(self) -> int:
        self._refresh()
        return self._engine.weight_version

    def weights_changed(self) -> None:
        if self._fetch is None:
            self._engine.weights_changed()
        self._is_stale = self._fetch is not None

    def rest(self) -> None:
        self._engine.rest()

    def _refresh(self) -> None:
        if self._is_stale and self._fetch is not None:
            self._fetch()
            self._engine.weights_changed()
            self._is_stale = False

    def generate(
        self, requests: Sequence[Request], enough: Callable[[Mapping[str, Output]], bool] | None = None
    ) -> list[Output]:
        """Outputs in the order of the requests. `enough` ends a rollout early on one process, as in the engine."""
        assert enough is None or self._processes.count == 1, "processes would not end a rollout at the same token"
        self._refresh()
        mine = self._processes.share(range(len(requests)))
        before = self._engine.stats
        outputs = self._engine.generate([requests[place] for place in mine], enough)
        parts = self._processes.gather((mine, outputs, difference(self._engine.stats, before)))
        self.stats = added(self.stats, [stats for _, _, stats in parts])
        answers = {place: output for places, found, _ in parts for place, output in zip(places, found, strict=True)}
        return [answers[place] for place in range(len(requests))]


def difference(after: EngineStats, before: EngineStats) -> EngineStats:
    """What an engine did in between."""
    return EngineStats(**{name: value - getattr(before, name) for name, value in vars(after).items()})


def added(total: EngineStats, parts: Sequence[EngineStats]) -> EngineStats:
    """The total after engines have worked side by side."""
    names = vars(total)
    summed = EngineStats(**{name: names[name] + sum(getattr(part, name) for part in parts) for name in names})
    return replace(summed, seconds=total.seconds + max(part.seconds for part in parts))
