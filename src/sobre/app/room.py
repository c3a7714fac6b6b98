"""Whether a stage fits its device, and what gives way where it does not: settled once, before its first step.

What `plan/card.py` decides stands in the events before it takes effect, so a resumed run does the same.
"""

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

import torch
from torch import nn

from sobre.app.session import Session
from sobre.engine.engine import Engine
from sobre.models.decoder import Decoder
from sobre.parallel.config import ParallelConfig
from sobre.plan import card
from sobre.plan.launch import PLANNED
from sobre.plan.layout import WEIGHT, Layout
from sobre.plan.outline import outline
from sobre.rl.config import RLConfig
from sobre.runtime.device import memory_of
from sobre.train.config import PretrainConfig, StageConfig
from sobre.train.share import largest_row_share, largest_share


def settle(
    session: Session,
    stage: str,
    model: Decoder,
    cfg: StageConfig | RLConfig,
    *,
    longest: int,
    engine: Engine | None = None,
    beside: Iterable[nn.Module] = (),
) -> tuple[bool, bool]:
    """Whether layers are computed again in the backward pass, and whether sampler and trainer take turns.

    `longest` is the longest sequence of the stage; `engine` samples on the same device, `beside` lies there too. On a
    CPU the host is the device, and turns would win nothing.
    """
    offload: card.Wish = False
    if isinstance(cfg, RLConfig) and engine is not None and session.device.type not in ("cpu", "mps"):
        offload = "auto" if cfg.offload == "auto" else cfg.offload == "on"

    def choose() -> card.Settled:
        memory = memory_of(str(session.device))
        load = load_of(session, model, cfg, longest=longest, engine=engine, beside=beside)
        return card.settle(load, inf if memory is None else memory, recompute=cfg.recompute, offload=offload)

    chosen: Mapping[str, Any] | None = None
    if "auto" in (cfg.recompute, offload):
        chosen = session.events.decide(stage, 0, "memory", lambda: choose().to_dict())
    chosen = chosen or choose().to_dict()  # nothing is open, or the run is older than this decision
    if chosen["recompute"] or chosen["offload"] or not chosen["fits"]:
        session.console.say(f"{stage}: {chosen['reason']}")
    return bool(chosen["recompute"]), bool(chosen["offload"])


def load_of(
    session: Session,
    model: Decoder,
    cfg: StageConfig | RLConfig,
    *,
    longest: int,
    engine: Engine | None = None,
    beside: Iterable[nn.Module] = (),
) -> card.Load:
    """What the stage puts on the device of each process."""
    parallel, count = session.recipe.parallel, session.processes.count
    sharers = parallel.sharers_of(count)
    share = largest_row_share if isinstance(cfg, PretrainConfig) else largest_share
    precision = "fp32" if model.dtype == torch.float32 else "bf16"
    if isinstance(cfg, StageConfig) and cfg.precision == "fp8-power-of-two":
        precision = "fp8"
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    sampler = None
    if engine is not None:
        sampler = card.Sampler(
            copy_bytes=_copy_bytes(engine), cache_bytes=engine.cache_bytes, at_once=engine.cfg.max_batch
        )
    return card.Load(
        model=outline(model.cfg),
        tokens=share(cfg.micro_tokens, longest, sharers),
        layout=_layout(parallel, count),
        batch_tokens=cfg.batch_tokens // sharers if isinstance(cfg, StageConfig) else 0,
        precision=precision,
        adapters=sum(p.numel() for p in model.parameters() if p.requires_grad) if model.lora else 0,
        frozen_bytes=float(sum(parameter.nbytes for parameter in frozen)),
        sampler=sampler,
        beside=float(sum(parameter.nbytes for module in beside for parameter in _own(module, frozen))),
    )


def _own(module: nn.Module, frozen: list[nn.Parameter]) -> list[nn.Parameter]:
    """Its parameters that are not the trained model's frozen ones."""
    shared = {id(parameter) for parameter in frozen}
    return [parameter for parameter in module.parameters() if id(parameter) not in shared]


def _copy_bytes(engine: Engine) -> float:
    """What the engine keeps of the weights beside the model's own: a matrix that it rounds."""
    model = engine.model
    if not isinstance(model, Decoder) or model.dtype == torch.float32:
        return 0.0
    return WEIGHT * sum(p.numel() for p in model.parameters() if p.dtype != model.dtype)


def _layout(parallel: ParallelConfig, count: int) -> Layout:
    """The recipe's layout as the planner draws it; shards that cannot be drawn beside experts are left out."""
    shards, learners = parallel.shards_of(count), parallel.learners_of(count)
    divided = shards > 1 and shards % parallel.experts == 0
    return Layout(
        data=max(1, (shards if divided else learners) // parallel.context),
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        expert=parallel.experts,
        context=parallel.context,
        zero=parallel.zero if divided else 0,
        schedule=PLANNED[parallel.schedule],
        chunks=parallel.n_stages // parallel.pipeline,
    )
