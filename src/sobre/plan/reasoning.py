"""What it costs to teach a model by reinforcement learning or by distillation: sampled tokens, then trained ones.

A rollout lasts as long as its longest answer: most chips have finished by then, which is why long answers are paid
mostly in waiting. The update trains on every sampled token; policy and reference are each run forward once more.
"""

from dataclasses import dataclass
from typing import Any

from sobre.errors import ConfigError
from sobre.plan.chips import Chip
from sobre.plan.efficiency import FITTED, Efficiency
from sobre.plan.outline import Outline
from sobre.plan.serving import Serving, decode_step
from sobre.plan.train import TrainingPlan, train
from sobre.schemas import VERSION


@dataclass(frozen=True, kw_only=True)
class ReasoningPlan:
    """Reinforcement learning on paper."""

    plan: TrainingPlan
    """How the update is trained."""
    samples: float
    mean_tokens: float
    rollout_s: float
    """Of one rollout."""
    rollouts: float
    tokens: float

    @property
    def generate_hours(self) -> float:
        return self.rollouts * self.rollout_s * self.plan.chips / 3600

    @property
    def update_hours(self) -> float:
        """Training on every token (3 passes) and two more forward passes, of old policy and reference."""
        return self.plan.gpu_hours * 5 / 3

    @property
    def gpu_hours(self) -> float:
        return self.generate_hours + self.update_hours

    @property
    def cost_usd(self) -> float | None:
        return self.plan.chip.usd(self.gpu_hours)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": VERSION,
            "kind": "reasoning",
            "model": self.plan.model.name,
            "chip": self.plan.chip.name,
            "chips": self.plan.chips,
            "samples": self.samples,
            "tokens": self.tokens,
            "rollout_s": self.rollout_s,
            "generate_hours": self.generate_hours,
            "update_hours": self.update_hours,
            "gpu_hours": self.gpu_hours,
            "cost_usd": self.cost_usd,
        }


@dataclass(frozen=True, kw_only=True)
class DistillPlan:
    """A student that learns from a teacher's answers, on paper."""

    plan: TrainingPlan
    """How the student is trained."""
    teacher: Serving
    """How the answers are sampled."""
    samples: float
    mean_tokens: float

    @property
    def sampling_hours(self) -> float:
        return self.samples * self.mean_tokens / self.teacher.decode_per_chip / 3600

    @property
    def gpu_hours(self) -> float:
        return self.sampling_hours + self.plan.gpu_hours

    @property
    def cost_usd(self) -> float | None:
        return self.plan.chip.usd(self.gpu_hours)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": VERSION,
            "kind": "distillation",
            "model": self.plan.model.name,
            "teacher": self.teacher.model.name,
            "chip": self.plan.chip.name,
            "chips": self.plan.chips,
            "samples": self.samples,
            "tokens": self.plan.tokens,
            "sampling_hours": self.sampling_hours,
            "training_hours": self.plan.gpu_hours,
            "gpu_hours": self.gpu_hours,
            "cost_usd": self.cost_usd,
        }


def reason(
    model: Outline,
    chip: Chip,
    *,
    chips: int,
    rollouts: float,
    samples: int,
    mean_tokens: int,
    max_tokens: int,
    precision: str,
) -> ReasoningPlan:
    """Plan reinforcement learning: so many rollouts of `samples` answers, and an update on every sampled token."""
    if rollouts <= 0 or samples < 1:
        raise ConfigError(f"rollouts={rollouts:g} must be above 0, and samples={samples} 1 or more")
    tokens = rollouts * samples * mean_tokens
    return ReasoningPlan(
        plan=train(model, chip, tokens=tokens, chips=chips, seq_len=mean_tokens, precision=precision),
        samples=samples,
        mean_tokens=mean_tokens,
        rollouts=rollouts,
        tokens=tokens,
        rollout_s=rollout_seconds(
            model, chip, chips=chips, samples=samples, mean_tokens=mean_tokens, max_tokens=max_tokens,
            weights=precision,
        ),
    )  # fmt: skip


def rollout_seconds(
    model: Outline,
    chip: Chip,
    *,
    chips: int,
    samples: int,
    mean_tokens: float,
    max_tokens: int,
    weights: str,
    eff: Efficiency = FITTED,
) -> float:
    """Seconds until the longest of `samples` answers is done, with the chips' mean number of answers still running."""
    unit = min(chips, 64)
    running = max(samples / chips * mean_tokens / max_tokens, 1 / unit)
    return max_tokens * decode_step(model, chip, unit, running, int(mean_tokens), weights, "bf16", eff)
