"""sobre config show | diff | check: look at resolved recipes.

sobre config show demo --budget 5m      every setting, in lines that are TOML themselves
sobre config diff demo out/demo/config.json
sobre config check mine.toml            is it a recipe? names every fault at once
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from sobre.config.base import config
from sobre.config.load import ABSENT, decode, diff, leaves, read_recipe, to_dict, to_json
from sobre.config.recipe import Recipe, load_recipe
from sobre.errors import ConfigError
from sobre.schemas import VERSION

USAGE = "usage: sobre config show [RECIPE ...] [flags] | diff LEFT RIGHT | check RECIPE ...   (each with --json)"


@config
class ShowOptions:
    """Flags of `sobre config show`."""

    json: bool = False
    """Print one JSON document: the config.json of a run."""


def main(argv: list[str]) -> int:
    """sobre config: look at resolved recipes."""
    actions: dict[str, Callable[[list[str]], None]] = {"show": show, "diff": compare, "check": check}
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if not argv or argv[0] not in actions:
        raise ConfigError(f"{'nothing' if not argv else repr(argv[0])} to do; {USAGE}")
    actions[argv[0]](argv[1:])
    return 0


def show(argv: list[str]) -> None:
    """Print every setting of the recipe that the arguments make."""
    recipe, options = load_recipe(argv, ShowOptions, prog="sobre config show")
    if options.json:
        print(to_json(recipe))
        return
    for path, value in leaves(to_dict(recipe)):
        print(f"# {path} is unset" if value is None else f"{path} = {_toml(value)}")


def compare(argv: list[str]) -> None:
    """Print where two recipes differ."""
    names, as_json = _names(argv)
    if len(names) != 2:
        raise ConfigError(f"diff takes two recipes, not {len(names)}; {USAGE}")
    left, right = (decode(Recipe, [read_recipe(name)]) for name in names)
    changes = diff(left, right)
    if as_json:
        sides = {path: {"left": a, "right": b} for path, (a, b) in changes.items()}
        print(json.dumps({"schema": VERSION, "changes": sides}, indent=2))
        return
    for path, (a, b) in changes.items():
        print(f"{path}: {_shown(a)} -> {_shown(b)}")
    if not changes:
        print("no difference", file=sys.stderr)


def check(argv: list[str]) -> None:
    """Decode each recipe on its own; every fault of every file is named before the verb fails."""
    names, as_json = _names(argv)
    if not names:
        raise ConfigError(f"check takes recipes; {USAGE}")
    faults: dict[str, str] = {}
    for name in names:
        try:
            decode(Recipe, [read_recipe(name)])
        except ConfigError as error:
            faults[name] = str(error)
    if as_json:
        print(json.dumps({"schema": VERSION, "faults": {name: faults.get(name, "") for name in names}}, indent=2))
    else:
        print("\n".join(f"{name}: a recipe" for name in names if name not in faults))
    if faults:
        raise ConfigError("\n".join(f"{name}: {fault}" for name, fault in faults.items()))


def _names(argv: list[str]) -> tuple[list[str], bool]:
    """The recipes named, and whether JSON was asked for."""
    unknown = [argument for argument in argv if argument.startswith("-") and argument != "--json"]
    if unknown:
        raise ConfigError(f"unknown flag {unknown[0]}; {USAGE}")
    return [argument for argument in argv if argument != "--json"], "--json" in argv


def _toml(value: Any) -> str:
    """A JSON value as TOML: the two agree on numbers, strings, booleans and lists of them; {} is an empty table."""
    return json.dumps(value, ensure_ascii=False)


def _shown(value: Any) -> str:
    return ABSENT if value == ABSENT else _toml(value)
