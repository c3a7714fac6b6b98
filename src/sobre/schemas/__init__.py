"""What our files look like: one JSON Schema (draft 2020-12) per kind of document or line, all versioned."""

import json
from importlib import resources
from typing import Any

from sobre.errors import ConfigError

VERSION = 1
"""Every document that we write carries `"schema": VERSION`."""


def names() -> list[str]:
    """The schemas that exist, for example "ledger" for a line of ledger.jsonl."""
    files = resources.files(__package__).iterdir()
    return sorted(file.name.removesuffix(".schema.json") for file in files if file.name.endswith(".schema.json"))


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema called `name`, as a dictionary."""
    if name not in names():
        raise ConfigError(f"no schema {name!r}; there are {', '.join(names())}")
    text = resources.files(__package__).joinpath(f"{name}.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded
