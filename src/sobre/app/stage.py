"""One stage of the story as a verb: `sobre pretrain`, `sobre sft`, `sobre rl`, `sobre dpo`.

The recipe is the same; of its stages only this one runs, and it goes on from the model that --model names.
"""

from dataclasses import replace

from sobre.app.run import SHORT_FLAGS, RunOptions, run
from sobre.config.recipe import Recipe, StageName, load_recipe
from sobre.errors import ConfigError

DATA_FLAG = {"pretrain": "--data.paths", "sft": "--sft.paths", "rl": "--tasks.files", "dpo": "--dpo.paths"}
"""What --data stands for in each stage."""


def run_stage(stage: StageName, argv: list[str]) -> int:
    """Run stage `stage` of a recipe."""
    return run(*read(stage, argv))


def read(stage: StageName, argv: list[str]) -> tuple[Recipe, RunOptions]:
    """The recipe, with this stage alone."""
    recipe, options = load_recipe(
        argv, RunOptions, prog=f"sobre {stage}", shortcuts=SHORT_FLAGS | {"--data": DATA_FLAG[stage]}
    )
    if recipe.says_nothing and options.resume:  # the folder's own recipe goes on
        return recipe, options
    if not recipe.start.model and stage != "pretrain":
        raise ConfigError("this stage goes on from a model: --model FOLDER (of a run: out/demo/base) or a hub id")
    name = stage if recipe.name == Recipe().name else recipe.name
    return replace(recipe, name=name, stages=(stage,)), options
