"""Models by name (models.toml) or by path to a config.json, ours or in the Hugging Face layout."""

import tomllib
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from sobre.config.load import Layer, decode
from sobre.errors import CheckpointError, ConfigError
from sobre.models.config import ModelConfig
from sobre.models.families.table import FAMILIES, family_of
from sobre.plan.config_json import read
from sobre.plan.hf import from_hf
from sobre.plan.outline import Outline, outline

UNSAID = {"rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "norm_topk_prob": True}
"""What models.toml leaves out, since nothing that is planned depends on it."""


def model(name: str) -> Outline:
    """The outline of a known model, of a folder that holds a config.json, or of that file."""
    path, tree = _tree(name)
    return _known(name) if path is None else _from_file(path, tree)


def shape(name: str) -> tuple[ModelConfig, str]:
    """The same as a config of ours, and the model_type that it comes from ("" for one of ours).

    Raises ConfigError for a family that the decoder does not have.
    """
    path, tree = _tree(name)
    if "model_type" not in tree:
        assert path is not None
        return _ours(path, tree), ""
    if path is None:
        tree = UNSAID | tree
    family = family_of(tree)
    if family is None:
        have = ", ".join(family.model_type for family in FAMILIES)
        raise ConfigError(f"{name}: model_type {tree['model_type']!r} is none of ours, which are {have}")
    try:
        return family.to_ours(tree), family.model_type
    except KeyError as error:
        raise ConfigError(f"{name}: {tree['model_type']} needs the key {error}") from None
    except CheckpointError as error:
        raise ConfigError(f"{name}: {error}") from None


def _tree(name: str) -> tuple[Path | None, dict[str, Any]]:
    """The config of a known model, or of a path and where it lies."""
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json":
        return path, read(path)
    table = known()
    if name not in table:
        near = get_close_matches(name.lower(), table, n=4, cutoff=0.4)
        wanted = f"perhaps {', '.join(near)}" if near else f"known are {', '.join(table)}"
        raise ConfigError(f"no model {name!r}; {wanted}; or the path of its config.json")
    return None, table[name]


@cache
def known() -> dict[str, dict[str, Any]]:
    """Name: config, of every model of the table."""
    return tomllib.loads(resources.files(__package__).joinpath("models.toml").read_text(encoding="utf-8"))


@cache
def _known(name: str) -> Outline:
    return from_hf(known()[name], name)


def _from_file(path: Path, tree: dict[str, Any]) -> Outline:
    name = (path.parent.name if path.name == "config.json" else path.stem) or "model"
    if "model_type" not in tree:
        return outline(_ours(path, tree), name)
    try:
        return from_hf(tree, name)
    except KeyError as error:
        raise ConfigError(f"{path}: {tree['model_type']} needs the key {error}") from None
    except (CheckpointError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _ours(path: Path, tree: dict[str, Any]) -> ModelConfig:
    ours = tree.get("model", tree)  # the config.json of a run holds the model as one of its sections
    if not isinstance(ours, dict) or "attention" not in ours:
        raise ConfigError(f"{path}: neither a model of Hugging Face (model_type) nor one of ours (attention)")
    return decode(ModelConfig, [Layer(str(path), {key: value for key, value in ours.items() if key != "schema"})])
