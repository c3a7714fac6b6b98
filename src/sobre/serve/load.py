"""From a model folder to an engine that is ready to answer, and what a look at it tells: memory, speed, price."""

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.errors import CheckpointError
from sobre.models.checkpoint import load_model
from sobre.plan.count import cache_bytes_per_token
from sobre.tokenizer.tokenizer import Tokenizer

PREFILL_TOKENS = 512
"""Prompt tokens of one step: running answers wait no longer than these take."""
PROBE_TOKENS = 32
"""Tokens of each answer that the speed is measured with."""


@dataclass(frozen=True)
class Loaded:
    """A model folder, in memory."""

    folder: Path
    tokenizer: Tokenizer
    engine: Engine
    n_params: int
    cache_bytes: int
    """Of all slots at full length; the system gives the memory as it is used."""


@dataclass(frozen=True)
class Speed:
    """Output tokens per second, measured at start with short prompts."""

    alone: float
    """One request at a time."""
    busy: float
    """All slots taken."""
    n_slots: int


def load_folder(folder: str, *, n_slots: int, max_context: int, experts: bool = False) -> Loaded:
    """Load a model folder; raises CheckpointError when it is none, naming model folders near it."""
    path = Path(folder)
    check_folder(path)
    model = load_model(path)
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size > model.cfg.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens and the model knows {model.cfg.vocab_size:,};"
            " they do not belong together"
        )
    cfg = EngineConfig(max_batch=n_slots, max_len=max_context, prefill_tokens=PREFILL_TOKENS, return_routes=experts)
    engine = Engine(model, cfg)
    n_params = sum(parameter.numel() for parameter in model.parameters())
    per_token = cache_bytes_per_token(model.cfg, model.dtype.itemsize)
    return Loaded(path, tokenizer, engine, n_params, per_token * n_slots * engine.max_len)


def check_folder(path: Path) -> None:
    """Say what is wrong with a path that is no model folder, and which ones are near."""
    if not path.is_dir():
        raise CheckpointError(f"there is no folder {path}{models_near(path.parent)}")
    missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).is_file()]
    if not any(path.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise CheckpointError(f"{path} is no model folder: it lacks {', '.join(missing)}{models_near(path)}")


def models_near(folder: Path) -> str:
    """Model folders inside `folder`, as the end of an error message."""
    found = sorted(file.parent for file in folder.glob("*/tokenizer.json") if any(file.parent.glob("*.safetensors")))
    return f"; models here: {', '.join(map(str, found[:8]))}" if found else ""


def measure_speed(engine: Engine, n_slots: int, budget_s: float = 2.0) -> Speed:
    """Let the engine write short answers, first one, then all slots at once (the very first step is not counted).

    A run is cut off after half the budget, and its speed is that of the part that was done.
    """
    n_tokens = max(1, min(PROBE_TOKENS, engine.max_len - 1))
    probe(engine, 1, 1, budget_s)
    return Speed(
        alone=probe(engine, 1, n_tokens, budget_s / 2),
        busy=probe(engine, n_slots, n_tokens, budget_s / 2),
        n_slots=n_slots,
    )


def probe(engine: Engine, n_requests: int, n_tokens: int, budget_s: float) -> float:
    """Tokens per second of `n_requests` answers of `n_tokens`, written together."""
    params = [SamplingParams(max_tokens=n_tokens, seed=index) for index in range(n_requests)]
    ids = [f"probe/{index}" for index in range(n_requests)]
    for request_id, sampling in zip(ids, params, strict=True):
        engine.add(Request(request_id, (0,), sampling))
    started, n_written = perf_counter(), 0
    while engine.has_work and (not n_written or perf_counter() - started < budget_s):
        n_written += len(engine.step())
    seconds = perf_counter() - started
    for request_id in ids:
        engine.abort(request_id)
    return n_written / seconds


def memory_bytes() -> int:
    """Memory that this process holds now (its peak where the system does not tell)."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
