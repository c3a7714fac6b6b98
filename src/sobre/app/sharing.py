"""One device for two: whether sampler and trainer fit it at once, or take turns."""

from sobre.app.session import Session
from sobre.models.decoder import Decoder
from sobre.plan.layout import Layout, training_memory
from sobre.plan.outline import outline
from sobre.rl.config import RLConfig
from sobre.runtime.device import memory_of

TWIN = 2.0
"""Bytes of a parameter in the engine's copy, which is rounded to 16 bits."""


def offloads(session: Session, model: Decoder, cfg: RLConfig, cache_bytes: int) -> bool:
    """Whether the optimizer's state waits on the host while answers are sampled, and the cache is given up while the
    model learns. On a CPU the host is the device, and nothing would be won."""
    if session.device.type in ("cpu", "mps"):
        return False
    planned = planned_bytes(model, cfg, cache_bytes)
    memory = memory_of(str(session.device)) or planned
    chosen = cfg.offload == "on" or (cfg.offload == "auto" and planned > memory)
    if chosen:
        needs = f"sampler and trainer together are planned at {planned / 2**30:,.1f} GiB of {memory / 2**30:,.1f}"
        session.console.say(f"rl: {needs}; they take turns: the optimizer's state waits on the host during rollouts")
    return chosen


def planned_bytes(model: Decoder, cfg: RLConfig, cache_bytes: int) -> float:
    """Peak memory with everything on the device: training, the sampler's copy of the weights, and its cache."""
    length = model.cfg.max_len
    layout = Layout(micro_batch=max(1, cfg.micro_tokens // length), recompute="full" if cfg.recompute else "none")
    training = training_memory(outline(model.cfg), layout, length, 1)
    copy = TWIN * sum(parameter.numel() for parameter in model.parameters())
    return sum(training.values()) + copy + cache_bytes
