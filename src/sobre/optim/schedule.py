"""The learning rate over a stage: warm-up, flat, cool-down (WSD, arXiv 2404.06395).

Progress, not the step count, drives the cool-down, because a stage that watches the clock learns its length on the
way; progress is a pure function of the recorded horizon, so a resumed run repeats it. The warm-up counts steps: what
it guards against, the optimizer's empty memory, is a matter of steps.
"""

from sobre.optim.config import OptimConfig


def lr_scale(progress: float, step: int, cfg: OptimConfig) -> float:
    """Learning rate over its peak at `progress` (0 to 1) and `step` (0, 1, ...)."""
    rise = min(1.0, (step + 1) / cfg.warmup_steps) if cfg.warmup_steps else 1.0
    return rise * _fall(min(max(progress, 0.0), 1.0), cfg)


def _fall(progress: float, cfg: OptimConfig) -> float:
    begin = 1.0 - cfg.cooldown
    if progress <= begin:
        return 1.0
    part = (progress - begin) / cfg.cooldown
    fallen = part if cfg.cooldown_shape == "linear" else part**0.5
    return 1.0 - (1.0 - cfg.final) * fallen
