"""The pool of samplers over a stand-in for Ray, some of whose workers never answer: they are given up in bounded time.

What Ray itself does is in tests/distributed/test_ray.py, where it is installed.
"""

import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import pytest

from sobre.engine.config import EngineConfig
from sobre.engine.engine import EngineStats
from sobre.engine.request import Output, Request, SamplingParams
from sobre.errors import ConfigError, RunError
from sobre.models.decoder import Decoder
from sobre.rl.config import SamplersConfig

TIMEOUT_S = 0.1


class RayActorError(Exception):
    pass


class Place:
    """A reference to what will come back: what, and when it is there (None: never)."""

    def __init__(self, value: Any = None, after_s: float | None = 0.0) -> None:
        self.value = value
        self.at = None if after_s is None else time.monotonic() + after_s

    @property
    def is_there(self) -> bool:
        return self.at is not None and time.monotonic() >= self.at


class Handle:
    """A worker: it answers after `after_s`, or never, and remembers what it was asked."""

    def __init__(self, after_s: float | None) -> None:
        self.after_s, self.asked, self.is_killed = after_s, [], False
        self.generate = self

    def remote(self, version: int, weights: Any, requests: Sequence[Request]) -> Place:
        self.asked.append([request.id for request in requests])
        outputs = [answer(request, version) for request in requests]
        stats = EngineStats(**dict.fromkeys(EngineStats.__dataclass_fields__, 0))
        return Place((outputs, stats), self.after_s)


def answer(request: Request, version: int) -> Output:
    return Output(request.id, token_ids=[version], logprobs=[0.0], finish_reason="length", weight_version=version)


class Cluster:
    """Stands for the module `ray`: `after` says how long each worker takes, in the order of their start."""

    def __init__(self, after: list[float | None]) -> None:
        self.after, self.workers = after, list[Handle]()
        self.module = ModuleType("ray")
        self.module.init = self.module.shutdown = lambda **_: None  # type: ignore[attr-defined]
        self.module.is_initialized = lambda: True  # type: ignore[attr-defined]
        self.module.cluster_resources = lambda: {"CPU": 8}  # type: ignore[attr-defined]
        self.module.put = lambda value: value  # type: ignore[attr-defined]
        self.module.get = lambda place: place.value  # type: ignore[attr-defined]
        self.module.kill = lambda worker: setattr(worker, "is_killed", True)  # type: ignore[attr-defined]
        self.module.wait, self.module.remote = self.wait, lambda _: self  # type: ignore[attr-defined]
        self.exceptions = ModuleType("ray.exceptions")
        names = ("ObjectLostError", "RayActorError", "RayTaskError")
        vars(self.exceptions).update(dict.fromkeys(names, RayActorError))

    def options(self, **_: Any) -> "Cluster":
        return self

    def remote(self, *_: Any, **__: Any) -> Handle:
        self.workers.append(Handle(self.after[len(self.workers)]))
        return self.workers[-1]

    @staticmethod
    def wait(places: list[Place], *, num_returns: int, timeout: float) -> tuple[list[Place], list[Place]]:
        end = time.monotonic() + timeout
        while not (ready := [place for place in places if place.is_there]) and time.monotonic() < end:
            time.sleep(0.005)
        return ready[:num_returns], [place for place in places if place not in ready[:num_returns]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, nano_config):
    """A pool of two workers over a cluster whose workers take so long."""

    def start(*after: float | None):
        cluster = Cluster(list(after))
        monkeypatch.setitem(sys.modules, "ray", cluster.module)
        monkeypatch.setitem(sys.modules, "ray.exceptions", cluster.exceptions)
        spec = find_spec("sobre.rl.ray_pool")
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)  # a copy of its own, for it holds the stand-in
        spec.loader.exec_module(module)
        said: list[str] = []
        cfg = SamplersConfig(workers=2, timeout_s=TIMEOUT_S)
        pool = module.RayPool(Decoder(nano_config), EngineConfig(), cfg, run_seed=0, say=said.append)
        pool.push(7, {})
        return pool, cluster, said

    return start


REQUESTS = [Request(name, (1, 2), SamplingParams(max_tokens=4)) for name in "abcd"]


def test_a_sampler_that_never_answers_is_replaced_and_its_prompts_return_to_the_queue(start) -> None:
    pool, cluster, said = start(0.0, None, 0.0)
    began = time.monotonic()
    outputs, stats = pool.finish(REQUESTS)
    assert TIMEOUT_S <= time.monotonic() - began < 10 * TIMEOUT_S
    assert [output.request_id for output in outputs] == ["a", "b", "c", "d"]
    assert [worker.asked for worker in cluster.workers] == [[["a", "b"], ["c"]], [["c", "d"]], [["d"]]]
    assert [worker.is_killed for worker in cluster.workers] == [False, True, False]
    assert stats.lost == 2
    assert TIMEOUT_S / 2 <= stats.lost_s < 10 * TIMEOUT_S
    assert said == ["rl: a sampler hangs (no answer in 0.1 s); another is started, and 2 requests go back to the queue"]


def test_a_sampler_that_answers_share_after_share_in_time_is_not_taken_for_hung(start) -> None:
    pool, cluster, said = start(0.07, 0.07)
    for letter in "efg":  # three shares in a row for each, together longer than the limit
        pool.begin([Request(f"{letter}{i}", (1,), SamplingParams(max_tokens=4)) for i in range(2)])
    time.sleep(2 * TIMEOUT_S)  # a learner that comes late finds them answered
    outputs, stats = pool.finish(REQUESTS)
    assert (len(outputs), stats.lost, said) == (4, 0, [])
    assert not any(worker.is_killed for worker in cluster.workers)


def test_requests_over_which_sampler_after_sampler_hangs_end_the_run(start) -> None:
    pool, _, said = start(0.0, None, None, None)
    with pytest.raises(RunError, match=r"3 samplers failed over the same .* the last hangs: no answer in 0\.1 s"):
        pool.finish(REQUESTS)
    assert len(said) == 2


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"samplers\.timeout_s=0\.0 must be above 0"):
        SamplersConfig(workers=1, timeout_s=0.0)
