"""sobre run: the whole story of one recipe, in one folder, within one budget."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from sobre.config.load import Layer, decode, to_dict
from sobre.config.recipe import Recipe, load_recipe
from sobre.runtime.allocator import reexec_once
from sobre.runtime.clock import process_age_s
from sobre.runtime.run_folder import claim, find_unfinished, resume


@dataclass(frozen=True)
class RunOptions:
    """Flags of `sobre run` that are no part of the recipe."""

    out: Path | None = None
    """Folder of the run; out/NAME when not given."""
    resume: bool = False
    """Go on with an unfinished run: the one in --out, or the last one of this recipe."""
    json: bool = False
    """Print the report as one JSON document on standard output; progress goes to standard error."""


def main(argv: list[str]) -> int:
    """sobre run: what does this budget become?"""
    recipe, options = load_recipe(argv, RunOptions, prog="sobre run")
    reexec_once()
    from sobre.app.session import Session  # torch from here on
    from sobre.app.story import tell
    from sobre.report.story import story
    from sobre.runtime.console import Console

    if options.resume:
        given = None if recipe == Recipe() else to_dict(recipe)  # without a recipe, the folder's own goes on
        folder = resume(options.out or find_unfinished(recipe.name, to_dict(recipe)), given)
        recipe = decode(Recipe, [Layer(str(folder.path / "config.json"), folder.config)])
    else:
        folder = claim(recipe.name, to_dict(recipe), out=options.out)
    with Console() as console:
        console.say(f"run {recipe.name} in {folder.path}")
        session = Session.open(recipe, folder, console, head_start_s=0.0 if options.resume else process_age_s())
        tell(session)
    report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        from rich.console import Console as Terminal

        Terminal(file=sys.stdout).print(story(report, folder.path))
    return 0
