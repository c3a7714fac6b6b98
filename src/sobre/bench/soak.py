"""sobre bench soak: a really started server under mixed load for minutes, its memory watched, and what is left after.

Every client is at once reader, aborter and stranger: a request is answered whole, streamed and left after a few events,
or left before its first, by chance; prompts repeat now and then, so that prefixes are found, kept and forgotten. At the
end, with nobody asking: no choice is open and no block of the cache is held, and the memory is what it was after a
quarter of the time. Anything else ends the benchmark with an error.
"""

import http.client
import json
import random
import re
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sobre.bench.config import SoakBench
from sobre.bench.result import Result, checked
from sobre.bench.serve import Asker, Started, started
from sobre.bench.timing import Say, Timing, as_json, medians
from sobre.config.load import to_dict
from sobre.errors import RunError

GROWTH = 0.05
"""Of the memory, from a quarter of the time to the end, beyond which it is not flat."""
QUIET_S = 20.0
"""How long the server may take to free what its last clients left."""
LOAD = "mixed load"


def bench(cfg: SoakBench, say: Say) -> Result:
    """Start, load, wait until it is quiet, look."""
    with TemporaryDirectory() as place, started(cfg, Path(place), say) as server:
        client = Client(cfg, server)
        began = time.perf_counter()
        memory = client.load(say)
        wall_s = time.perf_counter() - began
        left = quiet(server)
    first = memory[len(memory) // 4]
    grown = memory[-1] / first - 1 if first else 0.0
    check = [
        checked("answers other than 200", client.done["failed"], 0),
        checked("choices open when nobody asks", left["sobre_num_requests_open"], 0),
        checked("blocks held when nobody asks", left["sobre_kv_cache_blocks_held"], 0),
        checked("growth of the memory after a quarter of the time", grown, GROWTH),
    ]
    rounds = [{LOAD: Timing(wall_s, wall_s)}]
    told = ", ".join(f"{n} {what}" for what, n in sorted(client.done.items()))
    notes = (
        f"{sum(client.done.values())} requests in {cfg.minutes:g} minutes: {told}",
        f"memory {first / 2**20:.1f} MiB after a quarter of the time, {memory[-1] / 2**20:.1f} MiB at the end",
    )
    body = {
        "rounds": as_json(rounds),
        "medians": medians(rounds, {LOAD: float(sum(client.done.values()))}, "requests"),
        "ratios": [],
    }
    return Result("soak", "timing", to_dict(cfg), cfg.threads, check, body, notes)


class Client:
    """`streams` of them at once."""

    def __init__(self, cfg: SoakBench, server: Started) -> None:
        self.cfg, self.server, self.asker = cfg, server, Asker(cfg, server)
        self.rng = random.Random(cfg.seed)
        self.done: Counter[str] = Counter(failed=0)

    def load(self, say: Say) -> list[int]:
        """Ask until the time is over; the server's memory along the way."""
        ends, told, seen = time.monotonic() + 60 * self.cfg.minutes, time.monotonic(), [self.server.memory_bytes()]
        bodies: list[dict[str, Any]] = []
        with ThreadPoolExecutor(self.cfg.streams) as pool:
            while time.monotonic() < ends:
                bodies = (bodies + [self.body() for _ in range(self.cfg.streams)])[-256:]
                asked = [
                    self.rng.choice(bodies) if self.rng.random() < 0.2 else body for body in bodies[-self.cfg.streams :]
                ]
                self.done.update(pool.map(self.ask, asked, [self.rng.random() for _ in asked]))
                seen.append(self.server.memory_bytes())
                if time.monotonic() - told > 60:
                    told = time.monotonic()
                    say(f"{sum(self.done.values())} requests, memory {seen[-1] / 2**20:.1f} MiB")
        return seen

    def body(self) -> dict[str, Any]:
        n_prompt = self.rng.choice([self.rng.randint(4, 4 * self.cfg.prompt), self.cfg.long_prompt])
        return self.asker.body(n_prompt, self.rng.randint(1, self.cfg.new))

    def ask(self, body: dict[str, Any], chance: float) -> str:
        """One request, and how it ended."""
        if chance < 0.5:
            try:
                self.server.post(body)
            except RunError:
                return "failed"
            return "answered"
        connection = http.client.HTTPConnection(self.server.host, self.server.port, timeout=600)
        streamed = json.dumps(body | {"stream": True})
        connection.request("POST", "/v1/completions", streamed, {"content-type": "application/json"})
        if chance < 0.75:
            time.sleep((chance - 0.5) / 2)
            connection.close()
            return "left early"
        response = connection.getresponse()
        for _ in range(1 + int((chance - 0.75) * 40)):
            response.readline()
        connection.close()
        return "left in mid-stream" if response.status == 200 else "failed"


def quiet(server: Started) -> dict[str, float]:
    """The gauges once they are zero, or as they are after `QUIET_S`."""
    ends = time.monotonic() + QUIET_S
    while True:
        with urllib.request.urlopen(f"http://{server.host}:{server.port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        names = ("sobre_num_requests_open", "sobre_kv_cache_blocks_held")
        found = {name: sum(map(float, re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE))) for name in names}
        if not any(found.values()) or time.monotonic() > ends:
            return found
        time.sleep(0.1)
