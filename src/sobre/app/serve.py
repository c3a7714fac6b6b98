"""sobre serve MODEL: OpenAI's chat API and a chat page, from a model folder.

    sobre serve out/demo/rl                                  http://127.0.0.1:8000
    sobre serve out/demo/rl --port 0 --api-key K1 K2         a free port, two keys

Standard error tells the memory taken, the speed measured, the price of a million tokens, and `ready http://HOST:PORT`
once requests are answered; then one line per request, without content. SIGTERM lets running answers end.
"""

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sobre.config.load import load
from sobre.errors import ConfigError
from sobre.serve.config import ServeConfig


def main(argv: list[str]) -> int:
    """sobre serve: answer over HTTP."""
    cfg = load(ServeConfig, argv, recipes=None, prog="sobre serve")
    cfg = replace(cfg, api_key=(*cfg.api_key, *read_keys(cfg.api_key_file)))
    return serve(cfg)


def read_keys(path: str) -> tuple[str, ...]:
    """One key per line; blank lines do not count."""
    if not path:
        return ()
    try:
        keys = tuple(line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file={path} cannot be read: {type(error).__name__}") from None
    if not keys:
        raise ConfigError(f"api_key_file={path} holds no key: one per line")
    return keys


def serve(cfg: ServeConfig) -> int:
    """Load, say what it takes, and answer until a signal comes. torch is imported here, so that --help is instant."""
    from sobre.serve.api import create_app
    from sobre.serve.bridge import Bridge
    from sobre.serve.completion import ChatService
    from sobre.serve.examples import example_problems
    from sobre.serve.load import check_folder, load_folder, measure_speed, memory_bytes
    from sobre.serve.price import machine_price, usd_per_million
    from sobre.serve.server import bind, run_server

    check_folder(Path(cfg.model))
    price = machine_price(cfg.price_usd_per_h)
    listener = bind(cfg.host, cfg.port)
    loaded = load_folder(cfg.model, n_slots=cfg.n_slots, max_context=cfg.max_context)
    speed = measure_speed(loaded.engine, cfg.n_slots)
    per_million = usd_per_million(price, speed.busy)
    name = cfg.name or Path(cfg.model).resolve().name
    about = model_entry(name, loaded.engine.max_len, price.usd_per_h, per_million, cfg)
    say(f"{name}: {loaded.n_params:,} parameters, context {loaded.engine.max_len:,} tokens")
    cache = f"{loaded.cache_bytes / 2**20:,.1f} MiB"
    say(f"memory {memory_bytes() / 2**20:,.0f} MiB now; the cache of {cfg.n_slots} full answers takes {cache}")
    say(f"speed {speed.alone:,.0f} tokens/s for one request, {speed.busy:,.0f} tokens/s for {speed.n_slots} at once")
    say(f"price {per_million:.4g} USD per million tokens when busy: {price.usd_per_h:g} USD per hour ({price.source})")
    if cfg.host not in ("127.0.0.1", "localhost", "::1") and not cfg.api_key:
        say(f"warning: whoever reaches {cfg.host} may use this server; --api-key-file FILE asks for a key")
    bridge = Bridge(loaded.engine)
    service = ChatService(
        model=name,
        tokenizer=loaded.tokenizer,
        bridge=bridge,
        price=price,
        max_context=loaded.engine.max_len,
        max_open=cfg.n_slots + cfg.max_waiting,
        defaults=cfg,
    )
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    return run_server(create_app(service, cfg, about, example_problems()), bridge, listener, cfg.drain_s)


def model_entry(name: str, max_len: int, usd_per_h: float, usd_per_million: float, cfg: ServeConfig) -> dict[str, Any]:
    """The model as /v1/models shows it: OpenAI's fields, then context, sampling when none is asked for, and price."""
    return {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "sobre",
        "max_model_len": max_len,
        "default_sampling": {"temperature": cfg.temperature, "top_p": cfg.top_p},
        "pricing": {"usd_per_hour": usd_per_h, "usd_per_million_output_tokens": usd_per_million},
    }


def say(line: str) -> None:
    """A line for whoever started the server."""
    print(line, file=sys.stderr, flush=True)
