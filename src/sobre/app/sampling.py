"""Engines for a run's own model: one way to build them, for examinations and rollouts alike."""

from dataclasses import replace

import torch

from sobre.app.session import Session
from sobre.engine.engine import Engine
from sobre.kernels import select
from sobre.models.decoder import Decoder
from sobre.runtime.seed import key_u64


def engine_for(
    session: Session,
    model: Decoder,
    *,
    as_saved: bool = False,
    return_routes: bool = False,
    return_kept: bool = False,
) -> Engine:
    """An engine over the weights of `model`, in the dtype that decodes fastest here.

    On a CPU `as_saved` computes in float32, the dtype of the folder: an examination that `sobre eval` repeats.
    """
    cfg = session.recipe.engine
    max_len = min(cfg.max_len or model.cfg.max_len, model.cfg.max_len)
    chosen = replace(cfg, max_len=max_len, return_routes=return_routes, return_kept=return_kept)
    is_exact = as_saved and model.device.type == "cpu"
    dtype = torch.float32 if is_exact else select.decoding_dtype(model.device.type, model.dtype)
    return Engine(model.computing_in(dtype), chosen, run_seed=key_u64(session.recipe.seed, "engine") % 2**63)
