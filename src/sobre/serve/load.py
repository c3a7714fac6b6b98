"""From a model folder to an engine that is ready to answer, and what a look at it tells: memory, speed, price."""

import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from time import perf_counter

import torch

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.engine.saved import identity
from sobre.errors import CheckpointError
from sobre.models.checkpoint import load_model
from sobre.models.decoder import Decoder
from sobre.models.hub import is_hub_id, resolve
from sobre.models.peft import is_adapter
from sobre.plan.count import cache_bytes_per_token
from sobre.runtime.config import Device
from sobre.runtime.console import Console
from sobre.runtime.device import pick_device
from sobre.serve.config import PLAIN, Decoding, Dtype
from sobre.serve.memory import check_weights, fitting_cache
from sobre.tokenizer.tokenizer import Tokenizer

PREFILL_TOKENS = 512
"""Prompt tokens of one step: running answers wait no longer than these take."""
Progress = Callable[[int, int], None]
"""Called with the bytes that are read, and with all there are."""
LARGE_BYTES = 100_000_000
"""Weights from which on loading is shown as it goes."""
PROBE_TOKENS = 32
"""Tokens of each answer that the speed is measured with."""


@dataclass(frozen=True)
class Opened:
    """A model folder, in memory, with its own weights."""

    folder: Path
    tokenizer: Tokenizer
    model: Decoder


@dataclass(frozen=True)
class Loaded:
    """A model folder, ready to answer."""

    folder: Path
    tokenizer: Tokenizer
    engine: Engine
    n_params: int
    cache_tokens: int
    """That the cache holds, all answers together."""
    cache_bytes: int
    """What they take when they are there; the system gives the memory as it is used."""
    context: str
    """How long prompt and answer may be, in words."""
    identity: str
    """A digest of its own weights, when asked for."""


@dataclass(frozen=True)
class Speed:
    """Output tokens per second, measured at start with short prompts."""

    alone: float
    """One request at a time."""
    busy: float
    """All slots taken."""
    n_slots: int


def load_folder(
    model: str,
    *,
    n_slots: int,
    max_context: int,
    experts: bool = False,
    dtype: Dtype = "saved",
    device: Device = "auto",
    revision: str = "",
    decoding: Decoding = PLAIN,
    cache_tokens: int = 0,
    identified: bool = False,
    quiet: bool = False,
    progress: Progress | None = None,
) -> Loaded:
    """`open_folder`, and an engine for it; weights that were rounded are then there in that form alone."""
    opened = open_folder(model, dtype=dtype, device=device, revision=revision, quiet=quiet, progress=progress)
    digest = identity(opened.model) if identified else ""
    cfg, place = opened.model.cfg, next(opened.model.parameters()).device
    n_bytes = opened.model.dtype.itemsize if decoding.weights == "model" else torch.bfloat16.itemsize
    per_token = cache_bytes_per_token(cfg, n_bytes, int8=decoding.cache == "int8")
    context, n_tokens = max_context, cache_tokens
    if not cache_tokens:
        context, n_tokens = fitting_cache(per_token, n_slots, max_context, cfg.max_len, place)
    engine = make_engine(
        opened.model,
        n_slots=n_slots,
        max_context=context,
        experts=experts,
        decoding=decoding,
        cache_tokens=n_tokens,
    )
    short = not max_context and engine.max_len < cfg.max_len
    told = f"context {engine.max_len:,} tokens" + (f" of {cfg.max_len:,}: the free memory holds no more" * short)
    n_params = sum(parameter.numel() for parameter in opened.model.parameters())
    return Loaded(opened.folder, opened.tokenizer, engine, n_params, n_tokens, per_token * n_tokens, told, digest)


def open_folder(
    model: str,
    *,
    dtype: Dtype = "saved",
    device: Device = "auto",
    revision: str = "",
    quiet: bool = False,
    progress: Progress | None = None,
) -> Opened:
    """Load a model folder or a hub id; raises CheckpointError when it is neither, naming model folders near it.

    Weights are held and computed with in `dtype` (`Dtype`). A bar on standard error follows large ones unless `quiet`;
    `progress` hears of them, too.
    """
    path = find_folder(model, revision)
    place = pick_device(device)
    check_weights(path, 0.5 if dtype in ("bfloat16", "float16") else 1.0, place)
    weights = _weights(path, dtype, quiet, progress).to(place)
    refuse_unsound(weights, path)
    tokenizer = Tokenizer.load(path)
    tokenizer.check_fits(weights.cfg.vocab_size, model)
    return Opened(path, tokenizer, weights)


def make_engine(
    model: Decoder,
    *,
    n_slots: int,
    max_context: int,
    experts: bool = False,
    decoding: Decoding = PLAIN,
    cache_tokens: int = 0,
) -> Engine:
    """An engine for answering people: prompts in short pieces."""
    cfg = EngineConfig(
        max_batch=n_slots,
        max_len=max_context,
        prefill_tokens=PREFILL_TOKENS,
        cache_tokens=cache_tokens,
        weights=decoding.weights,
        cache=decoding.cache,
        speculate=decoding.speculate,
        deterministic=decoding.deterministic,
        return_routes=experts,
    )
    return Engine(model, cfg)


def find_folder(model: str, revision: str = "") -> Path:
    """The folder of a path or of a hub id (fetched if need be), with all that a model needs in it."""
    path = resolve(model, revision=revision) if is_hub_id(model) else Path(model)
    check_folder(path)
    return path


def _weights(path: Path, dtype: Dtype, quiet: bool, progress: Progress | None = None) -> Decoder:
    wanted = None if dtype in ("saved", "fp8") else getattr(torch, dtype)
    load = partial(load_model, path, dtype=wanted, keep_fp8=dtype == "fp8")
    if sum(file.stat().st_size for file in path.glob("*.safetensors")) < LARGE_BYTES:
        return load()
    with Console(quiet=quiet) as console:
        console.stage("load, MB", total=1)

        def show(done: int, total: int) -> None:
            console.update_bytes(done, total)
            if progress is not None:
                progress(done, total)

        return load(progress=show)


def refuse_unsound(weights: Decoder, path: Path) -> None:
    """A weight that is NaN or infinite makes every answer nonsense; FP8 numbers were looked at when they were read."""
    for name, weight in weights.named_parameters():
        if weight.dtype.itemsize > 1 and weight.numel() and not all(map(isfinite, weight.detach().aminmax())):
            raise CheckpointError(f"{path}: {name} holds NaN or infinite numbers")


def check_folder(path: Path) -> None:
    """Say what is wrong with a path that is no model folder, and which ones are near."""
    if not path.is_dir():
        raise CheckpointError(f"there is no folder {path}{models_near(path.parent)}")
    needed = ("tokenizer.json",) if is_adapter(path) else ("config.json", "tokenizer.json")
    missing = [name for name in needed if not (path / name).is_file()]
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


def cost_of_determinism(engine: Engine, fixed: Speed) -> str:
    """What `deterministic` takes from this engine's speed, in words: the same weights are tried without it."""
    n_tokens = min(engine.max_len, PROBE_TOKENS + 1)
    cfg = EngineConfig(
        max_batch=fixed.n_slots, max_len=n_tokens, speculate=engine.cfg.speculate, cache=engine.cfg.cache
    )
    free = Engine(engine.model, cfg)
    speed = measure_speed(free, fixed.n_slots, budget_s=1.0)
    alone, busy = speed.alone / fixed.alone, speed.busy / fixed.busy
    return (
        f"deterministic: the same bits in any company, at {alone:.1f} times the time of a token for one request and"
        f" {busy:.1f} times for {fixed.n_slots} at once (without it {speed.alone:,.0f} and {speed.busy:,.0f} tokens/s)"
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
