"""Engines for a run's own model: one way to build them, for examinations and rollouts alike."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace

import torch

from sobre.app.session import Session
from sobre.config.recipe import Recipe, StageName
from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.errors import ConfigError
from sobre.models.checkpoint import save_model
from sobre.models.decoder import Decoder
from sobre.plan import card
from sobre.plan.count import forward_flops
from sobre.rl.config import RLConfig, SamplersConfig
from sobre.rl.http_pool import HttpPool
from sobre.rl.remote_engine import RemoteEngine
from sobre.rl.worker import weights_of
from sobre.runtime.seed import key_u64
from sobre.tasks.tools import check_tools


def engine_for(
    session: Session,
    model: Decoder,
    *,
    longest: int = 0,
    as_saved: bool = False,
    return_routes: bool = False,
    return_kept: bool = False,
) -> Engine:
    """An engine over the weights of `model`, in the dtype that decodes fastest here.

    Its cache holds as many requests of `longest` tokens as run together (0: of the whole context); longer ones wait
    their turn. On a CPU `as_saved` computes in float32, the dtype of the folder: an examination that `sobre eval`
    repeats.
    """
    is_exact = as_saved and model.device.type == "cpu"
    view = model.computing_in(torch.float32) if is_exact else model.for_decoding()
    cfg = _sizes(session, model, return_routes, return_kept)
    if longest and not cfg.cache_tokens:
        cfg = replace(cfg, cache_tokens=card.cache_tokens(cfg.max_batch, longest, cfg.max_len))
    return Engine(view, cfg, run_seed=_run_seed(session))


def samplers_for(
    session: Session,
    stage: StageName,
    model: Decoder,
    samplers: SamplersConfig,
    *,
    return_routes: bool,
    return_kept: bool,
    fetch: Callable[[], None] | None,
) -> RemoteEngine:
    """The same engine in every worker on Ray, or servers behind HTTP, which follow the weights of `model`."""
    if samplers.urls:
        servers = HttpPool(
            samplers,
            vocab_size=model.cfg.vocab_size,
            folder=session.folder.state / stage / "samplers",
            save=lambda folder: save_model(model, folder),
            flops=lambda n_tokens: forward_flops(model.cfg, [n_tokens]),
        )
        return RemoteEngine(servers, session.processes, dict, fetch=fetch)
    from sobre.rl.ray_pool import RayPool  # what needs Ray

    cfg = _sizes(session, model, return_routes, return_kept)
    pool = RayPool(model.for_decoding(), cfg, samplers, run_seed=_run_seed(session), say=session.console.say)
    return RemoteEngine(pool, session.processes, lambda: weights_of(model), fetch=fetch)


def check(recipe: Recipe) -> None:
    """Refuse samplers on Ray where it is not installed, and Python as a tool where no sandbox holds it (SandboxError),
    before anything is done."""
    for stage in recipe.stages:
        section = getattr(recipe, stage)
        check_tools(section.tools if isinstance(section, RLConfig) else ())
        workers = section.samplers.workers if isinstance(section, RLConfig) else 0
        if workers and importlib.util.find_spec("ray") is None:
            raise ConfigError(f"{stage}.samplers.workers={workers} needs Ray: pip install 'sobre[ray]'")


def _sizes(session: Session, model: Decoder, routes: bool, kept: bool) -> EngineConfig:
    cfg = session.recipe.engine
    max_len = min(cfg.max_len or model.cfg.max_len, model.cfg.max_len)
    return replace(cfg, max_len=max_len, return_routes=routes, return_kept=kept)


def _run_seed(session: Session) -> int:
    return key_u64(session.recipe.seed, "engine") % 2**63
