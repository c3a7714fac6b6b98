"""Whether a recipe can run on the processes of a launch, and whether all of them have work.

Asked before a folder is taken, so that nothing is spent on what cannot be
(docs/decisions/018-every-process-has-a-row.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from sobre.config.recipe import Recipe
from sobre.errors import ConfigError
from sobre.parallel.config import ParallelConfig
from sobre.plan.ladder import at_rung
from sobre.plan.rules import LADDER
from sobre.rl.config import RLConfig
from sobre.train.config import FineTuneConfig, PretrainConfig

Stage = TypeVar("Stage", PretrainConfig, FineTuneConfig)


def check_layout(recipe: Recipe, n_processes: int) -> None:
    """Refuse a layout in which the recipe cannot run, whatever size the budget buys."""
    from sobre.models.checkpoint import model_config  # torch, where a model's own config says what it is

    layout = recipe.parallel
    check_stages(recipe, recipe.stages, n_processes)
    models = [recipe.model]
    if layout != ParallelConfig() and recipe.start.model:
        models = [model_config(recipe.start.model)]
    elif layout != ParallelConfig() and recipe.budget.choose_model:
        models = [at_rung(recipe.model, rung) for rung in LADDER]
    for model in models:
        try:
            return layout.check_model(model)
        except ConfigError as error:
            refused = error
    raise refused


def check_stages(recipe: Recipe, stages: Sequence[str], n_processes: int) -> None:
    """Refuse stages of the recipe that so many processes cannot run, or in which some would never have work."""
    layout = recipe.parallel
    layout.check_stages(stages, n_processes)
    for stage in stages:
        section = getattr(recipe, stage)
        if isinstance(section, RLConfig):
            section.check_processes(stage, n_processes, is_divided=layout.is_divided)
    if "pretrain" in stages:
        _check_rows(recipe, n_processes)


def _check_rows(recipe: Recipe, n_processes: int) -> None:
    layout, cfg, row = recipe.parallel, recipe.pretrain, recipe.data.seq_len
    n_rows, sharers = cfg.batch_tokens // row, layout.sharers_of(n_processes)
    if not 0 < n_rows < sharers:
        return
    fits = [f"{n_rows * n_processes // sharers} processes", f"--pretrain.batch_tokens {sharers * row} (larger steps)"]
    learners = layout.learners_of(n_processes)
    wider = [size for size in range(2, learners + 1) if learners % size == 0 and learners // size <= n_rows]
    if layout.pipeline == 1 and wider:
        fits.insert(1, f"--parallel.context {wider[0]} (each has pieces of rows)")
    raise ConfigError(
        f"pretrain.batch_tokens={cfg.batch_tokens:,} holds {n_rows} rows of data.seq_len={row:,}, and {sharers}"
        f" processes are to share them: {sharers - n_rows} would be paid for and have nothing to do;"
        f" it fits: {', '.join(fits)}"
    )


def with_work_for_all(stage: str, cfg: Stage, longest: int, sharers: int, say: Callable[[str], None]) -> Stage:
    """The stage with micro-batches that hold a sequence of `longest` tokens for each of `sharers` processes, as far as
    a step has them: the steps stay the same, cut otherwise."""
    least = sharers * longest
    if isinstance(cfg, FineTuneConfig):
        least = min(least, cfg.batch_tokens)
    if sharers == 1 or cfg.micro_tokens >= least:
        return cfg
    say(
        f"{stage}: forward passes of {least:,} tokens, where micro_tokens={cfg.micro_tokens:,} has no sequence for"
        f" each of {sharers} processes; a step stays {cfg.batch_tokens:,} tokens"
    )
    return replace(cfg, micro_tokens=least)
