"""A configuration as TOML: what differs from the defaults, and nothing else, so that it reads like a recipe by hand."""

import json
from collections.abc import Iterator
from typing import Any

from sobre.config.load import Tree, to_dict


def to_toml(cfg: Any, header: tuple[str, ...] = ()) -> str:
    """The text of a file that `sobre.config.load` reads back to an equal configuration; `header` becomes comments."""
    lines = [f"# {line}".rstrip() for line in header]
    for at, table in _tables(_changes(to_dict(cfg), to_dict(type(cfg)())), ()):
        lines += ["", f"[{'.'.join(at)}]"] if at else [""]
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()]
    return "\n".join(lines).lstrip("\n") + "\n"


def _changes(tree: Tree, default: Tree) -> Tree:
    """What is not the default; a table of another `kind` is whole, since defaults of the other kind would fill it."""
    found: Tree = {}
    for key, value in tree.items():
        old = default.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and value.get("kind") == old.get("kind"):
            if inner := _changes(value, old):
                found[key] = inner
        elif value != old:
            found[key] = {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
    return found


def _tables(tree: Tree, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tree]]:
    """(name, what stands in it) of every table, outer ones first."""
    plain = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    if plain:
        yield at, plain
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _tables(value, (*at, key))
