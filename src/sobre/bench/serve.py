"""sobre bench serve: a really started server under load, against itself with one stream.

Contestants, in turn: one stream; `streams` streams at once (tokens per second over HTTP); the first token of a short
prompt alone, while a prompt of several chunks is read, and of that long prompt alone; the first token of a chat with a
long history, and of its next turn. Beside the rounds, as notes with their targets: what a step costs beside the model,
seconds from the start of the process to `ready`, size and first paint of the page.

Random weights in a shape of the benchmarks. What is compared before: the same greedy tokens alone and in a crowd.
"""

import http.client
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from sobre.bench import ours
from sobre.bench.config import ServeBench
from sobre.bench.overhead import overhead
from sobre.bench.result import Result, checked
from sobre.bench.timing import Round, Say, Timing, as_json, medians, ratio
from sobre.config.load import to_dict
from sobre.errors import RunError
from sobre.models.checkpoint import load_model, save_model
from sobre.models.config import BLOCK
from sobre.serve.load import PREFILL_TOKENS
from sobre.serve.page import load_assets
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

START_S = 120.0
TARGET = 4.0
"""Throughput of the crowd over that of one stream."""
SOONER = 10.0
"""How much sooner the next turn of a long chat begins than its first."""
MOST_CHUNKS = 2
"""Of a long prompt that a short one waits for."""
LONG_CHUNKS = 4
"""Of the long prompt that it is set beside, as far as the context goes."""


@dataclass(frozen=True)
class Started:
    """A server's process, and where it listens."""

    process: subprocess.Popen[str]
    host: str
    port: int
    ready_s: float

    def post(self, body: dict[str, Any], path: str = "/v1/completions") -> dict[str, Any]:
        """One answer."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=600)
        try:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RunError(f"the server answered {response.status}: {content[:300].decode(errors='replace')}")
        return json.loads(content)

    def memory_bytes(self) -> int:
        """What the process holds now; 0 where the system does not tell."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1])
        except OSError:
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")


def bench(cfg: ServeBench, say: Say) -> Result:
    """Start, check, time, end."""
    with TemporaryDirectory() as place, started(cfg, Path(place), say) as server:
        asker = Asker(cfg, server)
        check = [checked("greedy texts that differ between one stream and a crowd", asker.differing(), 0.5)]
        rounds = [asker.round(index) for index in range(cfg.warmup + cfg.rounds)][cfg.warmup :]
        for index, found in enumerate(rounds):
            say(f"round {index + 1}: " + ", ".join(f"{name} {timing.wall_s:.3f} s" for name, timing in found.items()))
        notes = [cold_start_note(server, Path(place)), *page_notes(server)]
    share = f"{overhead(cfg):.1%} of a step of {cfg.streams} rows"
    notes.append(f"{share} beside the model and the sampler, by CPU time (target: at most 10 %)")
    units = {ONE: float(cfg.new), crowd(cfg): float(cfg.new * cfg.streams)}
    units |= {name: 1.0 for name in (SHORT, BESIDE, WHOLE, FIRST, AGAIN)}
    body = {
        "rounds": as_json(rounds),
        "medians": medians(rounds, units, "tokens"),
        "ratios": [
            ratio(rounds, crowd(cfg), ONE, units=units, target=TARGET),
            ratio(rounds, BESIDE, SHORT, units=units),
            ratio(rounds, BESIDE, WHOLE, units=units, target=-(-n_long(cfg) // PREFILL_TOKENS) / MOST_CHUNKS),
            ratio(rounds, AGAIN, FIRST, units=units, target=SOONER),
        ],
    }
    return Result("serve", "timing", to_dict(cfg), cfg.threads, check, body, tuple(notes))


ONE, SHORT, BESIDE = "one stream", "first token of a short prompt", "first token beside a long prompt"
WHOLE = "first token of that long prompt alone"
FIRST, AGAIN = "first token of a long chat", "first token of its next turn"


def crowd(cfg: ServeBench) -> str:
    return f"{cfg.streams} streams"


def n_long(cfg: ServeBench) -> int:
    """Tokens of the prompt that a short one is set beside."""
    return min(LONG_CHUNKS * PREFILL_TOKENS, cfg.model.max_len - 1)


@contextmanager
def started(cfg: ServeBench, folder: Path, say: Say) -> Iterator[Started]:
    """A model folder with random weights, and a server of its own process over it."""
    save_model(ours.build(cfg.model, cfg.seed), folder)
    Tokenizer.train(["abcdefgh 01234567"] * 3, TokenizerConfig(vocab_size=300)).save(folder)
    command = [sys.executable, "-m", "sobre", "serve", str(folder), "--port", "0", "--n-slots", str(cfg.streams)]
    began = time.perf_counter()
    env = os.environ | {"OMP_NUM_THREADS": str(cfg.threads), "MKL_NUM_THREADS": str(cfg.threads)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=env)
    assert process.stderr is not None
    drain = threading.Thread(target=process.stderr.read)  # its log must not fill the pipe
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("ready "):
                break
        else:
            raise RunError(f"the server did not start: {''.join(lines)[-500:]}")
        ready_s = time.perf_counter() - began
        say(f"ready after {ready_s:.2f} s")
        drain.start()
        address = urlsplit(re.split(r"\s+", lines[-1].strip())[1])
        yield Started(process, address.hostname or "", address.port or 0, ready_s)
    finally:
        process.terminate()
        process.wait(START_S)
        if drain.ident is not None:
            drain.join(START_S)
        process.stderr.close()


class Asker:
    """Requests with prompts of random tokens, no two alike."""

    def __init__(self, cfg: ServeBench, server: Started) -> None:
        self.cfg, self.server = cfg, server
        self.rng = random.Random(cfg.seed)

    def body(self, n_prompt: int, new: int, **fields: Any) -> dict[str, Any]:
        prompt = [self.rng.randrange(8, 260) for _ in range(n_prompt)]
        return {"model": self.name, "prompt": prompt, "max_tokens": new, "temperature": 1, "seed": 1} | fields

    @property
    def name(self) -> str:
        return Path(self.server.process.args[4]).name  # type: ignore[index, arg-type]

    def differing(self) -> int:
        """Greedy texts that are others in a crowd than alone."""
        bodies = [self.body(8, 8, temperature=0) for _ in range(8)]
        alone = [self.server.post(body)["choices"][0]["text"] for body in bodies]
        with ThreadPoolExecutor(len(bodies)) as pool:
            together = list(pool.map(lambda body: self.server.post(body)["choices"][0]["text"], bodies))
        return sum(a != b for a, b in zip(alone, together, strict=True))

    def round(self, index: int) -> Round:
        """Every contestant once; which kind comes first changes from round to round."""
        kinds = [self.throughput, self.short_prompts, self.long_prompts]
        found: Round = {}
        for kind in kinds[index % 3 :] + kinds[: index % 3]:
            found |= kind()
        return {name: found[name] for name in (ONE, crowd(self.cfg), SHORT, BESIDE, WHOLE, FIRST, AGAIN)}

    def throughput(self) -> Round:
        cfg = self.cfg
        bias = {"1": -100}  # the end of an answer: every stream writes all of its tokens
        one = self.body(cfg.prompt, cfg.new, logit_bias=bias)
        many = [self.body(cfg.prompt, cfg.new, logit_bias=bias) for _ in range(cfg.streams)]
        alone = timed(lambda: self.server.post(one))
        with ThreadPoolExecutor(cfg.streams) as pool:
            together = timed(lambda: list(pool.map(self.server.post, many)))
        return {ONE: alone, crowd(cfg): together}

    def short_prompts(self) -> Round:
        cfg = self.cfg
        alone = timed(lambda: self.server.post(self.body(cfg.prompt, 1)))
        whole = timed(lambda: self.server.post(self.body(n_long(cfg), 1)))
        long = threading.Thread(target=self.server.post, args=(self.body(n_long(cfg), 1),))
        long.start()
        time.sleep(0.03)  # the long prompt is being read
        beside = timed(lambda: self.server.post(self.body(cfg.prompt, 1)))
        long.join()
        return {SHORT: alone, BESIDE: beside, WHOLE: whole}

    def long_prompts(self) -> Round:
        """A chat of `long_prompt` tokens, and the same with its answer and a short question more."""
        path, history = "/v1/chat/completions", [{"role": "user", "content": self.letters(self.cfg.long_prompt)}]
        body = {"model": self.name, "max_tokens": 1, "seed": 1, "reasoning_effort": "none"}
        answered: list[dict[str, Any]] = []
        first = timed(lambda: answered.append(self.server.post(body | {"messages": history}, path)))
        said = {"role": "assistant", "content": answered[0]["choices"][0]["message"]["content"] or "a"}
        later = [*history, said, {"role": "user", "content": self.letters(8)}]
        again = timed(lambda: answered.append(self.server.post(body | {"messages": later}, path)))
        found = answered[1]["usage"]["prompt_cache_hit_tokens"]
        if found < self.cfg.long_prompt * 0.9 - BLOCK:
            raise RunError(f"only {found} of {self.cfg.long_prompt} tokens of the history were found again")
        return {FIRST: first, AGAIN: again}

    def letters(self, n: int) -> str:
        """A text of about `n` tokens."""
        return "".join(self.rng.choice("ijklmnopqrst") for _ in range(n))


def timed(work: Any) -> Timing:
    """Wall time; the work is the server's, whose CPU time this process does not see."""
    wall = time.perf_counter()
    work()
    wall_s = time.perf_counter() - wall
    return Timing(wall_s, wall_s)


def cold_start_note(server: Started, folder: Path) -> str:
    """How long the start took, beside what loading the same folder takes here."""
    load_s = timed(lambda: load_model(folder)).wall_s
    return (
        f"ready {server.ready_s:.2f} s after the start of the process, loading {load_s:.2f} s (target: 3 s + loading)"
    )


def page_notes(server: Started) -> list[str]:
    """Size of the page, and its first paint where a browser is found."""
    size = sum(len(asset.content) for asset in load_assets())
    notes = [f"page {size:,} bytes, all of its files (target: below 300,000)"]
    chromium = shutil.which("chromium")
    if not (chromium and find_spec("playwright")):
        return [*notes, "first paint not measured: it needs chromium and playwright"]
    from playwright.sync_api import sync_playwright

    paints = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(5):
            page = browser.new_page()
            page.goto(f"http://{server.host}:{server.port}/")
            page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
            paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            page.close()
        browser.close()
    return [
        *notes,
        f"first paint {', '.join(f'{paint:.0f}' for paint in paints)} ms after the request (target: below 200)",
    ]
