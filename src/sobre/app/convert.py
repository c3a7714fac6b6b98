"""sobre convert SRC DST --to hf: a model folder, written anew in its family's form.

What is not weights (tokenizer, chat template, generation config) is copied as it is; config keys that are not the
model's (token ids, for one) are kept. FP8 blocks leave multiplied out, in `--dtype`.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from sobre.config.load import load
from sobre.errors import ConfigError

COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class ConvertOptions:
    """Flags of `sobre convert`."""

    source: tyro.conf.Positional[str]
    """Folder of a model, or its id on the hub."""
    target: tyro.conf.Positional[str]
    """Folder to write; it must not hold anything yet."""
    to: Literal["hf"] = "hf"
    """hf: the layout of Hugging Face, for transformers, vLLM and SGLang."""
    dtype: Literal["saved", "float32", "bfloat16", "float16"] = "saved"
    """Of the weights written; `saved` keeps that of the source."""
    revision: str | None = None
    """Of a model on the hub: branch, tag or commit."""


def main(argv: list[str]) -> int:
    """Load, write, copy the rest, say what lies where."""
    options = load(ConvertOptions, argv, recipes=None, prog="sobre convert")
    target = Path(options.target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is not an empty folder; name one that does not exist yet")

    import torch

    from sobre.models.checkpoint import load_model, read_config, save_model
    from sobre.models.hub import resolve
    from sobre.runtime.console import Console

    source = resolve(options.source, revision=options.revision)
    with Console() as console:
        console.stage("load", total=1)
        dtype = None if options.dtype == "saved" else getattr(torch, options.dtype)
        model = load_model(source, dtype=dtype, progress=console.update)
        theirs = read_config(source)
        save_model(model, target, extra={key: theirs[key] for key in KEPT if key in theirs})
        for name in COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
        n_params = sum(parameter.numel() for parameter in model.parameters())
        console.say(f"{target}: {n_params:,} parameters as {read_config(target)['architectures'][0]}")
    return 0
