"""Models by name (models.toml) or by path to a config.json, ours or in the Hugging Face layout."""

import json
import tomllib
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from sobre.config.load import Layer, decode
from sobre.errors import ConfigError
from sobre.models.config import ModelConfig
from sobre.plan.hf import from_hf
from sobre.plan.outline import Outline, outline


def model(name: str) -> Outline:
    """The outline of a known model, of a folder that holds a config.json, or of that file."""
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json":
        return _from_file(path)
    table = known()
    if name not in table:
        near = get_close_matches(name.lower(), table, n=4, cutoff=0.4)
        wanted = f"perhaps {', '.join(near)}" if near else f"known are {', '.join(table)}"
        raise ConfigError(f"no model {name!r}; {wanted}; or the path of its config.json")
    return from_hf(table[name], name)


@cache
def known() -> dict[str, dict[str, Any]]:
    """Name: config, of every model of the table."""
    return tomllib.loads(resources.files(__package__).joinpath("models.toml").read_text(encoding="utf-8"))


def _from_file(path: Path) -> Outline:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable config.json: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config.json is an object, and this is a {type(tree).__name__}")
    name = path.parent.name if path.name == "config.json" else path.stem
    if "model_type" in tree:
        try:
            return from_hf(tree, name or "model")
        except KeyError as error:
            raise ConfigError(f"{path}: {tree['model_type']} needs the key {error}") from None
    ours = tree.get("model", tree)  # the config.json of a run holds the model as one of its sections
    if not isinstance(ours, dict) or "attention" not in ours:
        raise ConfigError(f"{path}: neither a model of Hugging Face (model_type) nor one of ours (attention)")
    ours = {key: value for key, value in ours.items() if key != "schema"}
    return outline(decode(ModelConfig, [Layer(str(path), ours)]), name or "model")
