"""Servers of vLLM's and SGLang's APIs as samplers: a small one of our own speaks their fields, well or badly."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.errors import ConfigError, RunError
from sobre.models.checkpoint import load_model, save_model
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.rl import rollout
from sobre.rl.config import CurriculumConfig, GRPOConfig, RLConfig, SamplersConfig
from sobre.rl.http_pool import HttpPool
from sobre.rl.remote_engine import RemoteEngine
from sobre.rl.source import RolloutSource
from sobre.runtime.processes import Processes
from sobre.tasks.config import TasksConfig
from sobre.tasks.format import Reward
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.step import train_step

TASKS = TasksConfig(names=("sorting",), langs=("en",))
Reply = Callable[[str, dict[str, Any]], Any]


class Server:
    """Answers POSTs by `reply(path, body)`: an object for JSON, bytes as they are, a number for an error's status."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.seen = reply, list[tuple[str, dict[str, Any]]]()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.seen.append((self.path, body))
                found = server.reply(self.path, body)
                status = found if isinstance(found, int) else 200
                said = (
                    found
                    if isinstance(found, bytes)
                    else json.dumps({"error": "broken"} if status != 200 else found).encode()
                )
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(said)))
                    self.end_headers()
                    self.wfile.write(said)
                except OSError:
                    pass  # the asker has gone

            def log_message(self, *_: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class Model:
    """What such a server answers with: our engine on the weights that it was told to read."""

    lock = threading.Lock()  # of all: kernels are chosen for the whole process

    def __init__(self, *, deterministic: bool = True) -> None:
        self.n_running, self.updates, self.deterministic = 0, list[int](), deterministic
        self.engine: Engine | None = None
        self.version = ""
        self.n_asked = 0

    def __call__(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            return self._load(body["kwargs"]["weights_path"], {"results": [None]})
        if path == "/update_weights_from_disk":
            self.version = body["weight_version"]
            return self._load(body["model_path"], {"success": True, "message": "done", "num_paused_requests": 0})
        if path == "/reset_prefix_cache":
            return b""
        params = body if path == "/v1/completions" else body["sampling_params"]
        how = SamplingParams(
            max_tokens=params.get("max_tokens") or params["max_new_tokens"],
            temperature=params["temperature"],
            stop_ids=tuple(params["stop_token_ids"]),
            seed=params.get("seed", len(body)),
        )
        self.n_running += 1
        with self.lock:
            self.n_asked += 1
            prompt = tuple(body["prompt"] if path == "/v1/completions" else body["input_ids"])
            seed = how.seed if "seed" in params else self.n_asked
            assert self.engine is not None
            (out,) = self.engine.generate([Request(str(self.n_asked), prompt, replace(how, seed=seed))])
        self.n_running -= 1
        if path == "/v1/completions":
            assert body["model"] == "mine"
            assert (body["return_token_ids"], body["ignore_eos"], body["top_p"], body["top_k"]) == (True, True, 1.0, -1)
            logprobs = {"token_logprobs": out.logprobs, "tokens": ["?"] * len(out.token_ids)}
            choice = {"token_ids": out.token_ids, "logprobs": logprobs, "finish_reason": out.finish_reason, "text": "?"}
            return {"choices": [choice]}
        listed = [[logprob, token, None] for logprob, token in zip(out.logprobs, out.token_ids, strict=True)]
        meta = {"finish_reason": {"type": out.finish_reason}, "output_token_logprobs": listed}
        return {"text": "?", "output_ids": out.token_ids, "meta_info": meta | {"weight_version": self.version}}

    def _load(self, folder: str, told: dict[str, Any]) -> dict[str, Any]:
        self.updates.append(self.n_running)
        self.engine = Engine(
            load_model(folder), EngineConfig(max_batch=4, deterministic=self.deterministic), run_seed=7
        )
        return told


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], Server]]:
    servers: list[Server] = []

    def start(reply: Reply) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def build(nano_config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A source that learns from an engine of its own, or from servers."""
    monkeypatch.setattr(rollout, "reward", lambda _, text, __, **___: Reward(0.0, 0.0, sum(map(str.islower, text)) / 6))

    def build(samplers: SamplersConfig) -> tuple[RolloutSource, Optimizer]:
        ffn = replace(nano_config.ffn, balance_alpha=0.0)
        model = Decoder(replace(nano_config, ffn=ffn, vocab_size=tokenizer.vocab_size, max_len=160))
        model.init_weights(0)
        engine: Engine | RemoteEngine = Engine(model, EngineConfig(max_batch=8, deterministic=True), run_seed=7)
        if samplers.urls:
            pool = HttpPool(
                samplers,
                vocab_size=tokenizer.vocab_size,
                folder=tmp_path / "samplers",
                save=lambda folder: save_model(model, folder),
                flops=lambda n_tokens: 1.0 * n_tokens,
            )
            engine = RemoteEngine(pool, Processes(), dict)
        cfg = RLConfig(
            algorithm=GRPOConfig(refill_rounds=1),
            n_prompts=2,
            group_size=3,
            max_tokens=5,
            max_correction=2.0,
            curriculum=CurriculumConfig(difficulty=(1, 1)),
            samplers=samplers,
        )
        source = RolloutSource(engine, model, tokenizer, cfg, TASKS, seed=7, forward_flops=lambda batch: 1.0)
        names = dict(model.named_parameters())
        return source, Optimizer(names, roles(names), OptimConfig(warmup_steps=0))

    return build


def run(source: RolloutSource, optimizer: Optimizer, n: int) -> list[dict]:
    """Metrics of n steps, without what they cost."""
    found = []
    for number in range(n):
        feed = source.feed(number)
        info = train_step(
            source.model, optimizer, feed.batches, source.loss_fn, lr_scale=3.0, clip=1.0, rebalance=False
        )
        metrics = {**feed.metrics, **source.updated(number, info), "loss": info.loss, "norm": info.grad_norm}
        found.append({key: value for key, value in metrics.items() if "flops" not in key and key != "rollout_s"})
    return found


def test_a_server_that_computes_as_we_do_gives_every_number_of_our_own_engine(build, serve, tmp_path) -> None:
    models = [Model(), Model()]
    urls = tuple(serve(model).url for model in models)
    alone = run(*build(SamplersConfig()), 3)
    source, optimizer = build(SamplersConfig(urls=urls, model_name="mine"))
    apart = run(source, optimizer, 3)
    costs = {"staleness": 0, "staleness_max": 0, "lost_answers": 0, "lost_s": 0}
    assert apart == [line | costs for line in alone]
    assert all(line["loss"] for line in alone)
    assert [len(model.updates) for model in models] == [3, 3]
    assert min(model.n_asked for model in models) >= 3 * 3
    assert [path.name for path in (tmp_path / "samplers").iterdir()] == ["version-2"]
    source.engine.close()
    assert not (tmp_path / "samplers").exists()


def test_sglang_samples_with_the_version_that_it_was_given(build, serve) -> None:
    model = Model()
    server = serve(model)
    lines = run(*build(SamplersConfig(urls=(server.url,), api="sglang")), 2)
    assert all(line["logp_gap_max"] <= 1e-5 for line in lines)
    versions = [body["weight_version"] for path, body in server.seen if path == "/update_weights_from_disk"]
    assert versions == ["0", "1"]


def test_weights_wait_for_the_answers_that_are_under_way(build, serve) -> None:
    model = Model(deterministic=False)  # it samples while the learner learns
    source, optimizer = build(SamplersConfig(urls=(serve(model).url,), model_name="mine", staleness=1))
    assert [line["staleness_max"] for line in run(source, optimizer, 4)] == [0, 1, 1, 1]
    assert model.updates == [0] * 4


GOOD = {"token_ids": [5, 2], "logprobs": {"token_logprobs": [-0.5, -0.25]}, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (500, "/v1/completions answers 500: .*broken"),
        (b"<html>", "something that is not JSON: b'<html>'"),
        ({"choices": []}, "answers otherwise than asked"),
        ({"choices": [{**GOOD, "token_ids": None}]}, "answers otherwise than asked"),
        ({"choices": [{**GOOD, "token_ids": ["5", "2"]}]}, "no whole numbers"),
        ({"choices": [{**GOOD, "logprobs": None}]}, "answers otherwise than asked"),
        ({"choices": [{**GOOD, "logprobs": {"token_logprobs": [-0.5]}}]}, "2 tokens have 1 log-probabilities"),
        ({"choices": [{**GOOD, "logprobs": {"token_logprobs": [-0.5, 0.3]}}]}, "a log-probability that is none"),
        (b'{"choices": [{"token_ids": [5, 2], "logprobs": {"token_logprobs": [NaN, -1]}, "finish_reason": "stop"}]}',
         "a log-probability that is none"),
        ({"choices": [{**GOOD, "token_ids": [99, 2]}]}, "a token outside the vocabulary of 64"),
        ({"choices": [{**GOOD, "token_ids": [2, 5]}]}, "stopped at token 5, which is not one of \\[2\\]"),
        ({"choices": [{**GOOD, "finish_reason": "length"}]}, "cut at 2 of 3 tokens"),
        ({"choices": [{**GOOD, "finish_reason": "abort"}]}, "ended by 'abort'"),
        ({"choices": [{**GOOD, "token_ids": [5] * 9, "logprobs": {"token_logprobs": [-1.0] * 9}}]}, "9 tokens, and 1"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_ends_the_run_with_what_was_said(serve, tmp_path, reply, said) -> None:
    server = serve(lambda path, body: b"" if path != "/v1/completions" else reply)
    with pytest.raises(RunError, match=said) as caught:
        ask(pool_of(server.url, tmp_path))
    assert server.url in str(caught.value)


def test_good_fields_are_read_as_they_are(serve, tmp_path) -> None:
    server = serve(lambda path, body: b"" if path != "/v1/completions" else {"choices": [GOOD]})
    outputs, stats = ask(pool_of(server.url, tmp_path))
    assert (outputs[0].token_ids, outputs[0].logprobs, outputs[0].finish_reason) == ([5, 2], [-0.5, -0.25], "stop")
    assert (stats.requests, stats.prompt_tokens, stats.generated_tokens, stats.computed_tokens) == (1, 3, 2, 4)
    assert stats.flops == 4


def test_a_dead_and_a_slow_server_are_named(serve, tmp_path) -> None:
    server = serve(lambda path, body: b"" if path != "/v1/completions" else time.sleep(5))
    with pytest.raises(RunError, match=r"did not answer within rl.samplers.timeout_s=0.1 s"):
        ask(pool_of(server.url, tmp_path, timeout_s=0.1))
    server.close()
    with pytest.raises(RunError, match=f"{server.url}/collective_rpc cannot be asked"):
        ask(pool_of(server.url, tmp_path))


def test_sglang_that_refuses_weights_or_samples_with_others_is_noticed(serve, tmp_path) -> None:
    refusing = serve(lambda path, body: {"success": False, "message": "shape mismatch"})
    with pytest.raises(RunError, match="did not take the weights in .*shape mismatch"):
        ask(pool_of(refusing.url, tmp_path, api="sglang"))
    meta = {"finish_reason": {"type": "stop"}, "output_token_logprobs": [[-0.5, 2, None]], "weight_version": "6"}
    old = serve(lambda path, body: {"success": True, "output_ids": [2], "meta_info": meta})
    with pytest.raises(RunError, match="sampled with weights '6', not 0"):
        ask(pool_of(old.url, tmp_path, api="sglang"))


def pool_of(url: str, folder: Path, **more: Any) -> HttpPool:
    cfg = SamplersConfig(urls=(url,), model_name="mine", at_once=2, **more)
    return HttpPool(cfg, vocab_size=64, folder=folder / "w", save=lambda place: place.mkdir(parents=True), flops=float)


def ask(pool: HttpPool) -> Any:
    """One request of three tokens to whatever the pool asks."""
    pool.push(0, {})
    try:
        return pool.finish([Request("a", (1, 7, 9), SamplingParams(max_tokens=3, stop_ids=(2,)))])
    finally:
        pool.close()


@pytest.mark.parametrize(
    ("samplers", "more", "said"),
    [
        ({"urls": ("http://a:1",), "model_name": "m"}, {}, "needs max_correction, say 2"),
        ({"urls": ("http://a:1",), "model_name": "m"}, {"max_correction": 2.0, "top_p": 0.9}, "what they chose from"),
        ({"urls": ("http://a:1",), "model_name": "m"}, {"max_correction": 2.0, "replay_routes": "on"}, "the experts"),
        ({"urls": ("http://a:1",)}, {}, "needs samplers.model_name"),
        ({"urls": ("http://a:1/v1",), "api": "sglang"}, {}, "must each be http://HOST:PORT"),
        ({"urls": ("http://a:1",), "workers": 2, "api": "sglang"}, {}, "one of them"),
        ({"timeout_s": 0}, {}, "timeout_s=0 must be above 0"),
    ],
)
def test_what_another_engine_cannot_do_is_refused(samplers, more, said) -> None:
    with pytest.raises(ConfigError, match=said):
        RLConfig(samplers=SamplersConfig(**samplers), **more)
