"""Engines for a run's own model: one way to build them, for examinations and rollouts alike."""

from dataclasses import replace

import torch

from sobre.app.session import Session
from sobre.engine.engine import Engine
from sobre.models.decoder import Decoder
from sobre.runtime.seed import key_u64


def engine_for(session: Session, model: Decoder, *, return_routes: bool = False, return_kept: bool = False) -> Engine:
    """An engine over `model`, in float32: at the sizes that a CPU trains, decoding in bf16 is slower."""
    cfg = session.recipe.engine
    max_len = min(cfg.max_len or model.cfg.max_len, model.cfg.max_len)
    chosen = replace(cfg, max_len=max_len, return_routes=return_routes, return_kept=return_kept)
    view = model.computing_in(torch.float32) if model.embed.weight.device.type == "cpu" else model
    return Engine(view, chosen, run_seed=key_u64(session.recipe.seed, "engine") % 2**63)
