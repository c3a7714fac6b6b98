"""A tokenizer, an engine that reads from a script, and a real uvicorn around it on a free port."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import torch

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, Token
from sobre.errors import PromptTooLong
from sobre.ledger.prices import Price
from sobre.models.config import MLAConfig, ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.serve.api import create_app
from sobre.serve.ask import Writer
from sobre.serve.bridge import Bridge
from sobre.serve.config import ServeConfig
from sobre.serve.grammar import Grammars
from sobre.serve.keys import Keyring, Limits, parse_key
from sobre.serve.metrics import Metrics
from sobre.serve.replicas import Replicas
from sobre.serve.server import Server, bind
from sobre.serve.service import Service, Services
from sobre.serve.upstream import UpstreamWriter
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

MAX_CONTEXT = 200


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(
        ["Three plus four is seven. Sept et huit. 三加四等于七。"] * 3, TokenizerConfig(vocab_size=300)
    )


@dataclass
class ScriptedEngine:
    """Writes what `script` says for each request, one token a step, to all requests at once."""

    script: Callable[[Request], list[int]]
    delay_s: float = 0.0
    fail_step: Exception | None = None
    fail_abort: Exception | None = None
    max_context: int = MAX_CONTEXT
    left: dict[str, list[int]] = field(default_factory=dict)
    asked: list[Request] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    warmed: list[tuple[tuple[int, ...], str]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    read: list[list[tuple[int, ...]]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    n_checks: int = 0
    fail_check: Exception | None = None

    @property
    def has_work(self) -> bool:
        return bool(self.left)

    @property
    def n_blocks_held(self) -> int:
        return len(self.left)

    @property
    def drafts(self) -> tuple[int, int]:
        return 0, 0

    @property
    def suspects(self) -> list[str]:
        """The last one that came."""
        return list(self.left)[-1:]

    def add(self, request: Request) -> None:
        self.threads.add(threading.get_ident())
        if len(request.prompt_ids) + request.params.max_tokens > self.max_context:
            raise PromptTooLong("too long for the script")
        self.asked.append(request)
        self.left[request.id] = self.script(request)[: request.params.max_tokens]

    def abort(self, request_id: str) -> None:
        if self.fail_abort is not None:
            raise self.fail_abort
        self.aborted.append(request_id)
        self.left.pop(request_id, None)

    def warm(self, prompt_ids, cache_key: str) -> None:
        self.warmed.append((tuple(prompt_ids), cache_key))

    def embed(self, prompts, pooling: str) -> torch.Tensor:
        """The last id, the number of ids, and how they are pooled."""
        self.threads.add(threading.get_ident())
        self.read.append([tuple(prompt) for prompt in prompts])
        time.sleep(self.delay_s)
        return torch.tensor([[prompt[-1], len(prompt), pooling == "last"] for prompt in prompts], dtype=torch.float32)

    def check_integrity(self) -> None:
        self.n_checks += 1
        if self.fail_check is not None:
            raise self.fail_check

    def end_thought(self, request_id: str) -> bool:
        self.ended.append(request_id)
        return request_id in self.left

    def step(self) -> list[Token]:
        time.sleep(self.delay_s)
        if self.fail_step is not None:
            error, self.fail_step = self.fail_step, None
            raise error
        tokens = []
        limits = {request.id: request.params for request in self.asked}
        for request_id, ids in list(self.left.items()):
            token_id = ids.pop(0)
            reason = None
            if not ids:
                reason = "stop" if token_id in limits[request_id].stop_ids else "length"
                del self.left[request_id]
            tokens.append(Token(request_id, token_id, -1.0, reason))
        return tokens


class RealEngine(Engine):
    """Ours, with a tiny mixture of random weights; a step may be slowed down."""

    delay_s = 0.0
    n_warmed = 0

    @property
    def max_context(self) -> int:
        return self.max_len

    def warm(self, prompt_ids, cache_key: str = "") -> None:
        super().warm(prompt_ids, cache_key)
        self.n_warmed += 1

    def step(self) -> list[Token]:
        time.sleep(self.delay_s)
        return super().step()


@pytest.fixture(scope="session")
def real_engine(tokenizer: Tokenizer) -> Callable[..., RealEngine]:
    """`real_engine(n_mtp=1, speculate=True)`: the same weights each time, 512 tokens of context, four places."""

    def make(*, n_mtp: int = 0, max_len: int = 512, **sizes: object) -> RealEngine:
        attention = MLAConfig(n_heads=2, kv_rank=16, nope_dim=8, rope_dim=8, v_dim=8)
        ffn = MoEConfig(n_experts=4, n_active=2, d_expert=16, d_ff=32)
        cfg = ModelConfig(
            vocab_size=tokenizer.vocab_size,
            d_model=16,
            n_layers=2,
            attention=attention,
            ffn=ffn,
            max_len=max_len,
            n_mtp=n_mtp,
        )
        model = Decoder(cfg)
        model.init_weights(0)
        return RealEngine(model.eval(), EngineConfig(**{"max_batch": 4} | sizes))

    return make


@dataclass
class Live:
    """A server that runs, and what is behind it."""

    url: str
    engine: ScriptedEngine
    bridge: Bridge
    server: Server
    http: httpx.Client


def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@contextmanager
def run_server(
    tokenizer: Tokenizer,
    engine: ScriptedEngine,
    *,
    max_open: int = 32,
    others: dict[str, ScriptedEngine] | None = None,
    n_experts: int = 0,
    listener: socket.socket | None = None,
    **settings: object,
) -> Iterator[Live]:
    """Run the real app under the real uvicorn in a thread; `others` are more models, by name; `n_experts` of an engine
    that returns routes; `listener` where the address is taken already."""
    cfg = ServeConfig(model=("folder",), **settings)
    price = Price(3.6, "a test")
    grammars = Grammars(tokenizer, tokenizer.vocab_size)
    writer = Writer(tokenizer, grammars, engine.max_context, cfg, n_experts=n_experts)
    metrics = Metrics()
    services = []
    for name, one in ({"scripted": engine} | (others or {})).items():
        about = {"id": name, "object": "model", "created": 1, "owned_by": "sobre", "max_model_len": one.max_context}
        about |= {"embedding_dimensions": 3, "experts": n_experts}
        services.append(Service(name, writer, Bridge(one), price, max_open, metrics, about))
    everything, bridge = Services(services), services[0].bridge
    keys = Keyring([parse_key(line, i, Limits()) for i, line in enumerate(cfg.api_key)])
    app = create_app(everything, cfg, keys, [{"task": "arithmetic", "lang": "en", "prompt": "1+1?"}])
    listener = listener or bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = Server(app, everything, cfg)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert eventually(lambda: server.started)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
            yield Live(f"http://127.0.0.1:{port}", engine, bridge, server, http)
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def answer_ids(tokenizer: Tokenizer) -> Callable[[str, str], list[int]]:
    """Token ids of a thought and an answer, as a model writes them."""

    def ids(thought: str, answer: str) -> list[int]:
        encode = tokenizer.encode
        return [*encode(thought + "\n"), tokenizer.think_close_id, *encode("\n" + answer), tokenizer.eos_id]

    return ids


@pytest.fixture(scope="module")
def live(tokenizer: Tokenizer, answer_ids: Callable[[str, str], list[int]]) -> Iterator[Live]:
    """A server whose model thinks "three plus four 🙂" and answers "It is seven: 七 🧑‍🚀."."""
    engine = ScriptedEngine(lambda request: answer_ids("three plus four 🙂", "It is seven: 七 🧑‍🚀."))
    with run_server(tokenizer, engine) as running:
        yield running


@pytest.fixture
def serving(tokenizer: Tokenizer) -> Callable[..., AbstractContextManager[Live]]:
    """`with serving(engine, **settings) as live:` runs a server of one's own."""
    return partial(run_server, tokenizer)


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedEngine]:
    return ScriptedEngine


@pytest.fixture(scope="session", name="eventually")
def eventually_fixture() -> Callable[..., bool]:
    return eventually


@pytest.fixture(scope="session", name="connect")
def connect_fixture() -> Callable[[str], socket.socket]:
    return raw_connection


def raw_connection(url: str) -> socket.socket:
    """A plain socket to the server."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


@pytest.fixture
def front(eventually):
    """`front(url)`: our API before the engine at `url`, or before several."""
    ends = []

    def start(*urls, read_timeout_s=5.0, api_key=()):
        cfg = ServeConfig(model=("front",), engine=urls, read_timeout_s=read_timeout_s, api_key=api_key)
        keys = Keyring([parse_key(line, i, Limits()) for i, line in enumerate(api_key)])
        writer, upstream = (
            UpstreamWriter("scripted", b"a secret of thirty-two characters"),
            Replicas(urls, read_timeout_s),
        )
        about = {"id": "front", "object": "model", "created": 1, "owned_by": "sobre"}
        service = Service("front", writer, upstream, Price(3.6, "a test"), 32, Metrics(), about)
        services, listener = Services([service]), bind("127.0.0.1", 0)
        server = Server(create_app(services, cfg, keys, []), services, cfg)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        assert eventually(lambda: server.started)
        http = httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=20)
        ends.append((server, thread, http))
        return http, service

    yield start
    for server, thread, http in ends:
        http.close()
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def faulty():
    """`faulty(answer)`: an engine that calls `answer(handler)` for each request; `owner`: what it says it is."""
    servers = []

    def start(answer, owner=None):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.body = self.rfile.read(int(self.headers["content-length"]))
                answer(self)

            def do_GET(self):
                if owner is None or self.path != "/v1/models":
                    self.send_error(404)
                    return
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"data": [{"id": "scripted", "owned_by": owner}]}).encode())

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join(5)
        server.server_close()
