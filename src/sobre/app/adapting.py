"""Runs that train adapters (recipe section [lora]): what they begin with, take up again, and leave behind.

The run's model is the base with its weights frozen and the adapters beside them. What a stage leaves is an adapter over
that base, in PEFT's format, and the merged model too where the recipe asks for it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sobre.config.recipe import NOTHING, Recipe
from sobre.errors import CheckpointError, ConfigError
from sobre.models.adapt import adapt
from sobre.models.checkpoint import load_adapted, load_model, save_adapter, save_model, take_adapter
from sobre.models.config import MoEConfig
from sobre.models.decoder import Decoder
from sobre.models.hub import resolve
from sobre.models.peft import is_adapter, read_adapter_config
from sobre.runtime.console import Console
from sobre.runtime.seed import key_u64
from sobre.tokenizer.tokenizer import Tokenizer


def check(recipe: Recipe) -> None:
    """Raise ConfigError where adapters make no sense."""
    rank = recipe.lora.rank
    if rank and (not recipe.start.model or "pretrain" in recipe.stages):
        raise ConfigError(f"lora.rank={rank} adapts a model that is there: name it with --model, and pretrain nothing")
    if rank and recipe.parallel.is_divided:
        raise ConfigError(
            f"lora.rank={rank} with{recipe.parallel.flags}: adapters train on whole copies; leave that out"
        )
    for stage in recipe.stages if rank else ():
        precision = getattr(getattr(recipe, stage), "precision", "auto")
        if precision != "auto":
            raise ConfigError(f"{stage}.precision={precision!r} is for weights that learn; adapters train in auto")
        if recipe.begins_with(stage) == NOTHING:
            raise ConfigError(f"lora.rank={rank}: {stage} begins with a new model, which has no weights to adapt")


def load_start(recipe: Recipe, compute_dtype: torch.dtype, console: Console) -> Decoder:
    """The model that the run begins with: all of it to be trained in float32, or frozen, with adapters.

    How its experts are kept in balance is in no model folder; it is the recipe's word, as for a new model.
    """
    model = _loaded(recipe, compute_dtype, console)
    balance_by(model, recipe)
    return model


def balance_by(model: Decoder, recipe: Recipe) -> None:
    """Give the routers the recipe's `bias_speed` and `balance_alpha`, or the defaults where its own model is dense."""
    moe = model.cfg.ffn
    if not isinstance(moe, MoEConfig):
        return
    asked = recipe.model.ffn if isinstance(recipe.model.ffn, MoEConfig) else MoEConfig()
    speed = asked.bias_speed if moe.biased else 0.0
    moe = replace(moe, bias_speed=speed, balance_alpha=asked.balance_alpha)
    model.cfg = replace(model.cfg, ffn=moe)
    for router in model.routers():
        router.cfg = moe


def _loaded(recipe: Recipe, compute_dtype: torch.dtype, console: Console) -> Decoder:
    """As it was saved, or with new or earlier adapters.

    Frozen weights stay as they were saved, but where all is computed in float32: widened once, not at each use.
    """
    name, lora = recipe.start.model, recipe.lora
    if not lora.rank:
        return load_model(name, dtype=torch.float32, compute_dtype=compute_dtype)
    how: dict[str, Any] = {"compute_dtype": compute_dtype}
    if compute_dtype == torch.float32:
        how["dtype"] = torch.float32
    if not is_adapter(resolve(name)):
        model = load_model(name, **how)
        adapt(model, lora, seed=key_u64(recipe.seed, "lora") % 2**63)
    else:
        model = load_adapted(name, **how)
        found = model.lora
        assert found is not None
        if found.rank != lora.rank or abs(found.scale / lora.scale - 1) > 1e-6:
            flags = f"--lora.rank {found.rank} --lora.alpha {found.alpha:g}"
            flags += " --lora.rank-stabilised" * found.rank_stabilised
            raise CheckpointError(
                f"{name} is an adapter of rank {found.rank} and scale {found.scale:g}, and the recipe asks for rank"
                f" {lora.rank} and scale {lora.scale:g}; to go on with it: {flags}; to merge it and train all weights:"
                " --lora.rank 0"
            )
    learning, total = count(model), sum(parameter.numel() for parameter in model.parameters())
    console.say(f"adapters of rank {lora.rank}: {learning:,} of {total:,} parameters learn")
    return model


def count(model: Decoder) -> int:
    """Parameters that learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def take_up(model: Decoder, folder: Path) -> None:
    """Give the model what a stage of this run has left in `folder`."""
    if model.lora is None:
        model.load_state_dict(load_model(folder).state_dict())
    else:
        take_adapter(model, folder)


def leave(model: Decoder, folder: Path, recipe: Recipe, tokenizer: Tokenizer, tokens: dict[str, Any]) -> None:
    """Write the weights of a stage's folder, or the adapter; `tokens` are the ids that join a model's config."""
    if model.lora is None:
        save_model(model, folder, extra=tokens)
    else:
        save_adapter(model, folder, base=_base(recipe.start.model))
        if recipe.lora.merged:
            save_model(model, folder / "merged", extra=tokens)
            tokenizer.save(folder / "merged", max_len=model.cfg.max_len)


def _base(name: str) -> str:
    """The model below the adapters as others find it: a hub id as it is, a folder from anywhere."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    return str(read_adapter_config(folder)["base_model_name_or_path"]) if is_adapter(folder) else str(folder.resolve())
