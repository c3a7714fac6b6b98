"""Samplers as actors on Ray: they are started, given weights and requests, and replaced when they die or hang.

The weights of a version are put into Ray's object store once; every machine fetches them once, and its workers read
them from shared memory. Requests are dealt in equal shares, in order, and Ray queues what a worker has yet to do, so
sets that were begun ahead follow without anybody's asking. A worker answers a whole share with one version.

When a worker dies, all that it had not answered goes back to the queue and is dealt anew to all, another worker is
started in its place, and the time that it had spent on the share at hand is counted as lost. So it is with one that
hangs: the learner waits `samplers.timeout_s` for the next answers of each. Answers come whole or not at all, so none is
counted twice; those of a worker that is given up are not looked at any more.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from sobre.engine.config import EngineConfig
from sobre.engine.engine import EngineStats
from sobre.engine.request import Output, Request
from sobre.errors import RunError
from sobre.models.decoder import Decoder
from sobre.rl.config import SamplersConfig
from sobre.rl.shared_engine import added
from sobre.rl.worker import Weights, Worker

MAX_DEATHS = 3
"""Workers that may fail over the same requests: then the reason lies in the requests, or in the machine."""
MIN_STORE_BYTES = 100 * 2**20
"""Of Ray's object store on this machine (Ray refuses less than 75 MiB)."""


@dataclass(frozen=True)
class Share:
    """Requests that one worker answers with one version of the weights."""

    requests: tuple[Request, ...]
    version: int
    weights: Any
    """Where they lie in the object store; kept there for as long as somebody has to read them."""
    worker: Any
    begun: float
    deaths: int = 0


class RayPool:
    """`cfg.workers` samplers of `model`; Ray is started, or joined, with the first weights."""

    def __init__(
        self,
        model: Decoder,
        engine: EngineConfig,
        cfg: SamplersConfig,
        *,
        run_seed: int,
        say: Callable[[str], None],
    ) -> None:
        self._model, self._engine, self._cfg, self._run_seed, self._say = model, engine, cfg, run_seed, say
        self._workers: list[Any] = []
        self._free_since: dict[Any, float] = {}
        self._version = 0
        self._weights: Any = None
        self._shares: dict[Any, Share] = {}
        """By Ray's reference to what will come back."""
        self._found: dict[str, Output] = {}
        self._lost, self._lost_s = 0, 0.0

    def push(self, version: int, weights: Weights) -> None:
        """Requests that are begun from now on are answered with these weights."""
        if not self._workers:
            self._join()
            self._workers = self._start(self._cfg.workers)
        self._version, self._weights = version, ray.put(weights)

    def begin(self, requests: Sequence[Request]) -> None:
        """Hand requests over. Those of an id that is under way already take its place."""
        self._drop({request.id for request in requests})
        self._deal(Share(tuple(requests), self._version, self._weights, None, 0.0))

    def finish(self, requests: Sequence[Request]) -> tuple[list[Output], EngineStats]:
        """Wait for requests, which are begun now if they were not; outputs in their order."""
        wanted = {request.id for request in requests}
        under_way = {request.id: request for share in self._shares.values() for request in share.requests}
        self.begin([request for request in requests if under_way.get(request.id) != request])
        done, began = [], time.monotonic()
        while waiting := {place: share for place, share in self._shares.items() if _ids(share) & wanted}:
            waited_s = {place: self._waited_s(share, began) for place, share in waiting.items()}
            longest = max(waited_s, key=lambda place: waited_s[place])
            left_s = max(0.0, self._cfg.timeout_s - waited_s[longest])
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=left_s)
            if ready:
                done += self._take(ready[0])
            elif left_s == 0.0:
                self._replace(waiting[longest].worker, "hangs", f"no answer in {self._cfg.timeout_s:g} s")
        outputs = [self._found.pop(request.id) for request in requests]
        stats = added(EngineStats(**{field.name: 0 for field in fields(EngineStats)}), done)
        stats = replace(stats, lost=self._lost, lost_s=self._lost_s)
        self._lost, self._lost_s = 0, 0.0
        return outputs, stats

    def close(self) -> None:
        """End the workers, and the Ray that was started for them."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers, self._shares, self._weights = [], {}, None
        if ray.is_initialized():
            ray.shutdown()

    def _join(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of a run is told to anybody
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15; sampling is most of the work
        cfg, where = self._cfg, dict[str, Any](address=self._cfg.address)
        if cfg.address == "local":
            where |= {"num_cpus": cfg.workers * cfg.threads, "num_gpus": cfg.workers * self._n_gpus}
            where |= {"object_store_memory": self._store_bytes, "include_dashboard": False}
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RunError(f"rl.samplers.address={cfg.address}: Ray cannot be used: {error}") from error
        asked, there = cfg.workers * cfg.threads, ray.cluster_resources().get("CPU", 0)
        if asked > there:
            self._say(
                f"rl: the samplers ask Ray for {asked} processors, and it has {there:g}: some wait for more to come"
            )

    @property
    def _n_gpus(self) -> int:
        """Of one worker: samplers compute where the learner does."""
        return int(self._model.device.type == "cuda")

    @property
    def _store_bytes(self) -> int:
        """Room for the model, the weights of every version that may be asked for, and the answers."""
        n_bytes = sum(tensor.nbytes for tensor in self._model.state_dict().values())
        return MIN_STORE_BYTES + (self._cfg.staleness + 3) * n_bytes

    def _start(self, n: int) -> list[Any]:
        """New workers; the model travels to each machine once."""
        actor = ray.remote(Worker).options(num_cpus=self._cfg.threads, num_gpus=self._n_gpus)
        model, how = ray.put(self._model), dict[str, Any](run_seed=self._run_seed, threads=self._cfg.threads)
        workers = [actor.remote(model, self._engine, **how) for _ in range(n)]
        self._free_since |= dict.fromkeys(workers, time.monotonic())
        return workers

    def _deal(self, whole: Share) -> None:
        """Give every worker its part of these requests."""
        n, count = len(whole.requests), len(self._workers)
        for i, worker in enumerate(self._workers):
            part = whole.requests[n * i // count : n * (i + 1) // count]
            if part:
                share = replace(whole, requests=part, worker=worker, begun=time.monotonic())
                self._shares[worker.generate.remote(share.version, share.weights, share.requests)] = share

    def _take(self, place: Any) -> list[EngineStats]:
        """What came back: answers, or the news that a worker is dead."""
        share = self._shares[place]
        try:
            outputs, stats = ray.get(place)
        except (RayActorError, ObjectLostError) as error:  # the second: it died with what it had answered
            self._replace(share.worker, "died", str(error))
            return []
        except RayTaskError as error:
            raise RunError(f"a sampler failed: {error.cause}") from error
        del self._shares[place]
        self._free_since[share.worker] = time.monotonic()
        self._found |= {output.request_id: output for output in outputs}
        return [stats]

    def _waited_s(self, share: Share, began: float) -> float:
        """How long the learner, who waits since `began`, has waited for this share or one of its worker's before."""
        return time.monotonic() - max(began, share.begun, self._free_since[share.worker])

    def _replace(self, dead: Any, how: str, why: str) -> None:
        """Another worker for one that died or hangs; all that it had not answered is dealt anew."""
        lost = [share for share in self._shares.values() if share.worker is dead]
        self._shares = {place: share for place, share in self._shares.items() if share.worker is not dead}
        at_hand = replace(lost[0], deaths=lost[0].deaths + 1)  # the others waited behind it
        if at_hand.deaths == MAX_DEATHS:
            raise RunError(
                f"{MAX_DEATHS} samplers failed over the same {len(at_hand.requests)} requests; the last {how}: {why}"
                " (if memory ran out: a smaller engine.max_batch, or fewer rl.samplers.workers on a machine)"
            )
        ray.kill(dead)
        self._workers[self._workers.index(dead)] = self._start(1)[0]
        spent_s = time.monotonic() - max(at_hand.begun, self._free_since.pop(dead))
        self._lost += len(at_hand.requests)
        self._lost_s += spent_s / len(self._workers)
        back, cause = sum(len(share.requests) for share in lost), why.splitlines()[0]
        self._say(f"rl: a sampler {how} ({cause}); another is started, and {back} requests go back to the queue")
        for share in [at_hand, *lost[1:]]:
            self._deal(share)

    def _drop(self, ids: set[str]) -> None:
        """Forget what is under way of these requests."""
        self._shares = {place: share for place, share in self._shares.items() if not _ids(share) & ids}
        for request_id in ids & self._found.keys():
            del self._found[request_id]


def _ids(share: Share) -> set[str]:
    return {request.id for request in share.requests}
