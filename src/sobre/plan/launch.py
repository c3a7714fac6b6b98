"""A planned layout as a run has it: the flags, the line that starts it, and what the plan counts on beyond that."""

from typing import Any

from sobre.errors import ConfigError
from sobre.models.config import ModelConfig, MoEConfig
from sobre.parallel.config import ParallelConfig, Schedule
from sobre.plan.chips import Chip
from sobre.plan.layout import Layout, ScheduleName
from sobre.plan.train import TrainingPlan

PLANNED: dict[Schedule, ScheduleName] = {
    "1f1b": "1f1b",
    "interleaved": "interleaved",
    "zero-bubble": "zb1p",
    "zbv": "dualpipev",
    "dualpipev": "dualpipev",
}
"""What the planner calls a run's schedules."""
RUN: dict[ScheduleName, Schedule] = {theirs: ours for ours, theirs in PLANNED.items()}
"""What a run has of the planner's; of the two that it calls dualpipev, the last."""


def division(layout: Layout, cfg: ModelConfig) -> tuple[ParallelConfig, list[str]]:
    """The planned layout as a run has it, and what the plan counts on beyond that."""
    if layout.chips == 1:
        return ParallelConfig(), []
    notes = []
    sizes: dict[str, Any] = {"tensor": layout.tensor, "context": layout.context, "experts": layout.expert}
    for name, size in sizes.items():
        try:
            ParallelConfig(**{name: size}).check_model(cfg)
            if name == "context" and size > 1 and layout.pipeline > 1:
                raise ConfigError("a run does not have it in a pipeline")
        except ConfigError as error:
            notes.append(f"the plan counts on {name} {size} too: {error}")
            sizes[name] = _divisor(size, cfg) if name == "experts" else 1
    schedule, layers = RUN.get(layout.schedule, "1f1b"), cfg.n_layers + cfg.n_mtp
    if layout.pipeline == 1:
        schedule = "1f1b"
    elif schedule == "1f1b" != layout.schedule:
        notes.append(f"the plan counts on {layout.schedule}, which a run does not have: 1f1b, which waits longer")
    elif schedule != "1f1b" and layers < 2 * layout.pipeline:
        notes.append(
            f"the plan counts on {layout.schedule}, for which a run cuts the layers into {2 * layout.pipeline} stages,"
            f" and there are {layers}: 1f1b, which waits longer"
        )
        schedule = "1f1b"
    if layout.recompute == "selective":
        notes.append("the plan computes parts of a layer again, and a run whole layers (pretrain.recompute) or none")
    zero = 1 if layout.pipeline > 1 else layout.zero or 1
    return ParallelConfig(shards=0, zero=zero, pipeline=layout.pipeline, schedule=schedule, **sizes), notes


def _divisor(size: int, cfg: ModelConfig) -> int:
    """The largest part of the planned one that divides the experts of a layer evenly."""
    n_experts = cfg.ffn.n_experts if isinstance(cfg.ffn, MoEConfig) else 1
    return max(n for n in range(1, size + 1) if size % n == 0 and n_experts % n == 0)


def micro_tokens(plan: TrainingPlan, parallel: ParallelConfig) -> int:
    """Tokens of a forward pass of all learners together: each takes the planned micro-batch."""
    return plan.layout.micro_batch * plan.seq_len * parallel.sharers_of(plan.chips)


def starter(chips: int, chip: Chip) -> str:
    """How a run on so many chips is started."""
    if chips == 1:
        return "sobre run"
    nodes = -(-chips // chip.node)
    return f"torchrun {f'--nnodes {nodes} ' if nodes > 1 else ''}--nproc-per-node {min(chips, chip.node)} -m sobre run"


def line(plan: TrainingPlan, recipe: str, cfg: ModelConfig, batch_tokens: int) -> tuple[str, list[str]]:
    """What to type for a recipe to run as planned, and what is to be known of it; `batch_tokens` are the recipe's."""
    parallel, notes = division(plan.layout, cfg)
    flags = f"{parallel.flags} --pretrain.micro-tokens {micro_tokens(plan, parallel)}"
    if int(plan.batch_tokens) != batch_tokens:
        flags += f" --pretrain.batch-tokens {int(plan.batch_tokens)}"
        notes.append(
            f"steps of {int(plan.batch_tokens):,} tokens, not the recipe's {batch_tokens:,}, are another training:"
            f" {plan.chips} chips need as many rows of {plan.seq_len:,}"
        )
    if plan.chips > plan.chip.node:
        notes.append(
            "every machine runs that line, with --rdzv-backend c10d --rdzv-endpoint FIRST:29500 behind torchrun;"
            " `sobre launch` writes the job file"
        )
    return f"{starter(plan.chips, plan.chip)} {recipe}{flags}", notes
