"""Samplers apart from the learner, as the one engine that a rollout asks.

A request carries its seed, so who answers it changes nothing but the rounding of the model's sums, and with
`engine.deterministic` not even that. Weights have versions: the updates since this process began. `begin` hands
requests over with the present version and comes back at once; a later `generate` of the same waits for their answers,
each of which says its version.

Of several learners the first alone talks to the samplers, and tells the others what came back.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Protocol

from sobre.engine.engine import EngineStats
from sobre.engine.request import Output, Request
from sobre.rl.shared_engine import added
from sobre.rl.worker import Weights
from sobre.runtime.processes import Processes


class Pool(Protocol):
    """Samplers: actors on Ray (rl/ray_pool.py) or servers behind HTTP (rl/http_pool.py)."""

    def push(self, version: int, weights: Weights) -> None:
        """Requests that are begun from now on are answered with these weights."""

    def begin(self, requests: Sequence[Request]) -> None:
        """Hand requests over. Those of an id that is under way already take its place."""

    def finish(self, requests: Sequence[Request]) -> tuple[list[Output], EngineStats]:
        """Wait for requests, which are begun now if they were not; outputs in their order."""
        ...

    def close(self) -> None: ...


class RemoteEngine:
    """What a rollout needs of an engine, from a pool of samplers."""

    def __init__(
        self,
        pool: Pool,
        processes: Processes,
        weights: Callable[[], Weights],
        *,
        fetch: Callable[[], None] | None = None,
    ) -> None:
        """`fetch` puts the whole model together where the one in training is divided; `weights` reads it then."""
        self._pool, self._processes, self._weights, self._fetch = pool, processes, weights, fetch
        self.weight_version = 0
        self._is_pushed = False
        self.stats = EngineStats(**{field.name: 0 for field in fields(EngineStats)})
        """Of all samplers together, but for the seconds, which are those that the learner waited."""

    def weights_changed(self) -> None:
        self.weight_version += 1
        self._is_pushed = False

    def begin(self, requests: Sequence[Request]) -> None:
        """Let the samplers begin; a later `generate` of the same requests waits for their answers."""
        self._refresh()
        self._processes.decide(lambda: self._pool.begin(requests))

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """Outputs in the order of the requests."""
        began = time.perf_counter()
        self._refresh()

        def finish() -> tuple[list[Output], EngineStats]:
            outputs, stats = self._pool.finish(requests)
            return outputs, replace(stats, seconds=time.perf_counter() - began)

        outputs, stats = self._processes.decide(finish)
        self.stats = added(self.stats, [stats])
        return outputs

    def close(self) -> None:
        """The samplers are done; asked of a process that fails, too, and so of each alone."""
        if self._processes.is_first:
            self._pool.close()

    def _refresh(self) -> None:
        if self._is_pushed:
            return
        if self._fetch is not None:
            self._fetch()
        self._processes.decide(lambda: self._pool.push(self.weight_version, self._weights()))
        self._is_pushed = True
