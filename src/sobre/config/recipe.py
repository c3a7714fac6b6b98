"""The recipe: one tree that holds every setting of a run, one section for each part of the story. No torch here."""

from typing import Literal

from sobre.config.base import config
from sobre.config.load import RECIPES, O, load_with
from sobre.models.config import ModelConfig

SHORTCUTS = {"--budget": "--budget.amount", "--data": "--data.paths"}


@config
class Recipe:
    """A run: what it may spend, what it reads, what it builds and how it learns."""

    name: str = "run"
    """Name of the run; its folder is out/NAME unless --out says otherwise."""
    seed: int = 0
    """Every random choice of the run derives from it."""
    stages: tuple[Literal["pretrain", "sft", "rl"], ...] = ("pretrain", "sft", "rl")
    """What the run does, in this order; each stage starts from the model that the one before left."""
    model: ModelConfig = ModelConfig()
    """The decoder; its sizes are the planner's choice unless budget.choose_model is off."""


def load_recipe(argv: list[str], options: type[O], *, prog: str | None = None) -> tuple[Recipe, O]:
    """Read a recipe and a verb's own flags; --budget and --data stand for budget.amount and data.paths."""
    return load_with(Recipe, options, argv, recipes=RECIPES, shortcuts=SHORTCUTS, prog=prog)
