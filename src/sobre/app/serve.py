"""sobre serve MODEL [MODEL ...]: OpenAI's and Anthropic's APIs and a chat page, from model folders.

    sobre serve out/demo/rl                                  http://127.0.0.1:8000
    sobre serve deepseek-ai/DeepSeek-V3 --engine vllm        the same API and page before another engine
    sobre serve MODEL --engine http://a:8000 http://b:8000   before replicas: each conversation stays with one
    sobre serve out/demo/rl out/demo/sft                     two models, side by side on the page
    sobre serve out/demo/rl --port 0 --api-key K1 K2         a free port, two keys
    sobre serve out/demo/rl --prefix-dir out/prefixes        a restart forgets no prefix

Standard error tells the memory taken, the speed measured, the price of a million tokens, and `ready http://HOST:PORT`
once requests are answered (before that they get a 503); then one line per request, without content. SIGTERM lets
running answers end.
"""

import logging
import secrets
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sobre.config.load import load
from sobre.errors import ConfigError
from sobre.serve.config import LOOPBACK, MIN_SECRET_CHARS, ServeConfig
from sobre.serve.keys import Keyring, Limits, parse_key
from sobre.serve.say import say

if TYPE_CHECKING:
    from sobre.ledger.prices import Price
    from sobre.serve.loading import Loading
    from sobre.serve.metrics import Metrics
    from sobre.serve.service import Service


def main(argv: list[str]) -> int:
    """sobre serve: answer over HTTP."""
    cfg = load(ServeConfig, argv, recipes=None, prog="sobre serve")
    return serve(cfg, read_keyring(cfg))


def read_keyring(cfg: ServeConfig) -> Keyring:
    """The keys of the flags and of the key file, with the limits of each."""
    limits = Limits(
        requests_per_min=cfg.requests_per_min, tokens_per_min=cfg.tokens_per_min, usd_per_day=cfg.usd_per_day
    )
    lines = [*cfg.api_key, *read_lines(cfg.api_key_file)]
    keys = [parse_key(line, number + 1, limits) for number, line in enumerate(lines)]
    if len({key.text for key in keys}) < len(keys):
        raise ConfigError("a key is given twice")
    return Keyring(keys, limits)


def read_lines(path: str) -> tuple[str, ...]:
    """One key per line; blank lines and comments (#) do not count."""
    if not path:
        return ()
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file={path} cannot be read: {type(error).__name__}") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"api_key_file={path} holds no key: one per line")
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise ConfigError(f"api_key_file={path}: keys must be printable ASCII")
    return keys


def serve(cfg: ServeConfig, keys: Keyring) -> int:
    """Load, say what it takes, and answer until a signal comes. torch is imported here, so that --help is instant."""
    from sobre.serve.api import create_app
    from sobre.serve.examples import example_problems
    from sobre.serve.grammar import WITHOUT, llguidance
    from sobre.serve.load import find_folder
    from sobre.serve.loading import Loading
    from sobre.serve.metrics import Metrics
    from sobre.serve.price import machine_price
    from sobre.serve.server import bind, run_server
    from sobre.serve.service import Services

    if cfg.engine != ("sobre",):
        return serve_other(cfg, keys)
    names, price, metrics = model_names(cfg), machine_price(cfg.price_usd_per_h), Metrics()
    with bind(cfg.host, cfg.port) as listener:
        with Loading(listener, cfg, keys) as loading:
            folders = [find_folder(model, cfg.revision) for model in cfg.model]
            services = [
                open_service(name, folder, cfg, price, metrics, loading)
                for name, folder in zip(names, folders, strict=True)
            ]
        if llguidance is None:
            say(WITHOUT)
        if cfg.host not in LOOPBACK and keys.is_open:
            say(f"warning: whoever reaches {cfg.host} may use this server; --api-key-file FILE asks for a key")
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
        everything = Services(services)
        return run_server(create_app(everything, cfg, keys, example_problems()), everything, listener, cfg)


def open_service(
    name: str, folder: Path, cfg: ServeConfig, price: "Price", metrics: "Metrics", loading: "Loading"
) -> "Service":
    """One model, ready to answer; what it takes and how fast it is, said on standard error."""
    from sobre.serve.ask import Writer
    from sobre.serve.bridge import Bridge
    from sobre.serve.grammar import Grammars
    from sobre.serve.load import cost_of_determinism, load_folder, measure_speed, memory_bytes
    from sobre.serve.prefixes import KeptPrefixes
    from sobre.serve.price import usd_per_million
    from sobre.serve.service import Service

    loading.tell(f"opening {name}")
    loaded = load_folder(
        str(folder),
        n_slots=cfg.n_slots,
        max_context=cfg.max_context,
        experts=cfg.experts,
        dtype=cfg.dtype,
        device=cfg.device,
        decoding=cfg.decoding,
        cache_tokens=cfg.cache_tokens,
        identified=bool(cfg.prefix_dir),
        progress=loading.read,
    )
    loading.tell(f"measuring the speed of {name}")
    speed = measure_speed(loaded.engine, cfg.n_slots)
    per_million = usd_per_million(price, speed.busy)
    rounded = f"; {cfg.rounding.told}" if cfg.rounding.told else ""
    say(f"{name}: {loaded.n_params:,} parameters, {loaded.context}{rounded}")
    cache = f"{loaded.cache_bytes / 2**20:,.1f} MiB"
    all_full = loaded.cache_tokens >= cfg.n_slots * loaded.engine.max_len
    whose = f"{cfg.n_slots} full answers" if all_full else f"{loaded.cache_tokens:,} tokens"
    say(f"memory {memory_bytes() / 2**20:,.0f} MiB now; the cache of {whose} takes {cache}")
    say(f"speed {speed.alone:,.0f} tokens/s for one request, {speed.busy:,.0f} tokens/s for {speed.n_slots} at once")
    if cfg.deterministic:
        say(cost_of_determinism(loaded.engine, speed))
    rate = f"{price.usd_per_h:g} USD per hour ({price.source})"
    say(f"price {per_million:.4g} USD per million tokens when busy: {rate}")
    grammars = Grammars(loaded.tokenizer, loaded.engine.model.cfg.vocab_size)
    n_experts = getattr(loaded.engine.model.cfg.ffn, "n_experts", 0) if cfg.experts else 0
    writer = Writer(loaded.tokenizer, grammars, loaded.engine.max_len, cfg, n_experts=n_experts)
    about = model_entry(name, loaded.engine.max_len, price.usd_per_h, per_million) | {
        "default_sampling": {"temperature": cfg.temperature, "top_p": cfg.top_p},
        "answer_now": True,
        "experts": n_experts,
        "embedding_dimensions": loaded.engine.model.cfg.d_model,
    }
    max_open = cfg.n_slots + cfg.max_waiting
    service = Service(name, writer, Bridge(loaded.engine), price, max_open, metrics, about)
    if cfg.prefix_dir:
        kept = KeptPrefixes(loaded.engine, loaded.identity, Path(cfg.prefix_dir), name, say)
        kept.load()
        service.keep = kept.save
    return service


def serve_other(cfg: ServeConfig, keys: Keyring) -> int:
    """Put our API, page, keys and prices before other engines: one that is started here, or those at addresses."""
    from sobre.serve.api import create_app
    from sobre.serve.command import command, wait_for_any, wait_until_ready
    from sobre.serve.loading import Loading
    from sobre.serve.metrics import Metrics
    from sobre.serve.price import machine_price
    from sobre.serve.process import EngineProcess
    from sobre.serve.replicas import Replicas
    from sobre.serve.server import bind, run_server
    from sobre.serve.service import Service, Services
    from sobre.serve.upstream import UpstreamWriter

    price, secret = machine_price(cfg.price_usd_per_h), read_secret(cfg.salt_file)
    name = cfg.name or Path(cfg.model[0]).name
    urls, theirs, process = cfg.engine, cfg.model[0], None
    engine = cfg.engine[0]
    with bind(cfg.host, cfg.port) as listener, ExitStack() as started:
        if engine in ("vllm", "sglang"):
            with bind("127.0.0.1", 0) as free:
                port = free.getsockname()[1]
            urls, theirs = (f"http://127.0.0.1:{port}",), name
            line = command(engine, cfg.model[0], name, port, cfg.max_context)
            process = started.enter_context(EngineProcess(line, say))
        with Loading(listener, cfg, keys) as loading:
            loading.tell(f"waiting for {', '.join(urls)}")
            if len(urls) == 1:
                wait_until_ready(urls[0], process, say)
            else:
                wait_for_any(urls, say)
        about = model_entry(name, cfg.max_context, price.usd_per_h, None) | {"answer_now": False, "experts": 0}
        writer = UpstreamWriter(theirs, secret)
        replicas = Replicas(urls, cfg.read_timeout_s, process)
        service = Service(name, writer, replicas, price, cfg.n_slots + cfg.max_waiting, Metrics(), about)
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        services = Services([service])
        return run_server(create_app(services, cfg, keys, []), services, listener, cfg)


def read_secret(path: str) -> bytes:
    """What salts are made with: of this file, or drawn."""
    if not path:
        return secrets.token_bytes(32)
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"salt_file={path} cannot be read: {type(error).__name__}") from None
    if len(secret) < MIN_SECRET_CHARS:
        raise ConfigError(f"salt_file={path} holds {len(secret)} characters; a secret has at least {MIN_SECRET_CHARS}")
    return secret.encode()


def model_names(cfg: ServeConfig) -> list[str]:
    """The models' names in the API: their folders' names, with the parent's where two are alike."""
    paths = [Path(folder).resolve() for folder in cfg.model]
    plain = [path.name for path in paths]
    names = [path.name if plain.count(path.name) == 1 else f"{path.parent.name}/{path.name}" for path in paths]
    names[0] = cfg.name or names[0]
    if len(set(names)) < len(names):
        raise ConfigError(f"model: two models would have one name: {', '.join(names)}")
    return names


def model_entry(name: str, max_len: int, usd_per_h: float, usd_per_million: float | None) -> dict[str, Any]:
    """The model as /v1/models shows it: OpenAI's fields, then context and price."""
    return {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "sobre",
        "max_model_len": max_len,
        "pricing": {"usd_per_hour": usd_per_h, "usd_per_million_output_tokens": usd_per_million},
    }
