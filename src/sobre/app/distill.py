"""sobre distill: one stage of the story, a student taught by another model.

sobre distill distill/from-answers --teacher ./big --student ./small --budget 5m
sobre distill distill/on-policy --teacher ./big --student ./small --budget 5m
sobre distill distill/from-answers --teacher ./big --student-from-nothing --budget 10m
sobre distill distill/from-answers --teacher http://127.0.0.1:8000/v1 --teacher-name big --student ./small
"""

from dataclasses import dataclass, replace

from sobre.app.run import RunOptions, run
from sobre.config.recipe import Recipe, load_recipe
from sobre.errors import ConfigError

FLAGS = {
    "--teacher": "--distill.answers.teacher",
    "--teacher-name": "--distill.answers.model-name",
    "--student": "--start.model",
    "--method": "--distill.method",
    "--data": "--tasks.files",
}


@dataclass(frozen=True)
class DistillOptions(RunOptions):
    """Flags of `sobre distill` that are no part of the recipe."""

    student_from_nothing: bool = False
    """Begin a student whose size the budget chooses, with the teacher's tokenizer."""


def main(argv: list[str]) -> int:
    """Run it."""
    return run(*read(argv))


def read(argv: list[str]) -> tuple[Recipe, RunOptions]:
    """The recipe, with this stage alone."""
    recipe, options = load_recipe(argv, DistillOptions, prog="sobre distill", shortcuts=FLAGS)
    if recipe.says_nothing and options.resume:  # the folder's own recipe goes on
        return recipe, options
    if bool(recipe.start.model) == options.student_from_nothing:
        raise ConfigError("who is taught? --student FOLDER (or a hub id), or --student-from-nothing")
    if options.student_from_nothing and recipe.distill.method == "on_policy":
        raise ConfigError("a student from nothing has no answers to learn from on-policy; begin with --method text")
    name = "distill" if recipe.name == Recipe().name else recipe.name
    return replace(recipe, name=name, stages=("distill",)), options
