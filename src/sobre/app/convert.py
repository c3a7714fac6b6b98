"""sobre convert SRC DST: a model leaves, as a folder in its family's form or as one GGUF file.

    sobre convert out/demo/rl folder --to hf           for transformers, vLLM and SGLang
    sobre convert out/demo/rl folder --to gguf         for llama.cpp: folder/rl-f16.gguf
    sobre convert out/demo/rl small.gguf --to gguf --type q8_0

Of a folder, what is not weights (tokenizer, chat template, generation config) is copied as it is, and config keys that
are not the model's (token ids, for one) are kept. A GGUF file holds tokenizer and template. FP8 blocks leave multiplied
out, unless --dtype fp8 keeps every byte of them.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from sobre.config.load import load
from sobre.errors import ConfigError

if TYPE_CHECKING:
    from sobre.models.decoder import Decoder
    from sobre.runtime.console import Console

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
    """Folder to write, which must not hold anything yet; with --to gguf also the name of a file ending in .gguf."""
    to: Literal["hf", "gguf"] = "hf"
    """hf: the layout of Hugging Face, for transformers, vLLM and SGLang. gguf: one file for llama.cpp."""
    dtype: Literal["saved", "float32", "bfloat16", "float16", "fp8"] = "saved"
    """Of the weights of a folder; `saved` is that of the source, FP8 blocks multiplied out; `fp8` keeps those, too."""
    type: Literal["f16", "q8_0", "f32"] = "f16"
    """Of the matrices of a GGUF file; norms, biases and routers stay in float32."""
    revision: str | None = None
    """Of a model on the hub: branch, tag or commit."""


def main(argv: list[str]) -> int:
    """Load, write, say what lies where."""
    options = load(ConvertOptions, argv, recipes=None, prog="sobre convert")
    check(options)
    target = Path(options.target)

    import torch

    from sobre.models.checkpoint import load_model
    from sobre.models.hub import resolve
    from sobre.runtime.console import Console

    source = resolve(options.source, revision=options.revision)
    with Console() as console:
        console.stage("load, MB", total=1)
        dtype = None if options.dtype in ("saved", "fp8") else getattr(torch, options.dtype)
        keep_fp8 = options.dtype == "fp8"
        model = load_model(source, dtype=dtype, keep_fp8=keep_fp8, progress=console.update_bytes)
        if options.to == "hf":
            write_folder(model, source, target, console)
        else:
            name = Path(options.source).name
            file = target if target.suffix == ".gguf" else target / f"{name}-{options.type}.gguf"
            write_gguf(model, source, file, options, console)
    return 0


def check(options: ConvertOptions) -> None:
    """Refuse flags that do not belong together, and a target that holds something."""
    target = Path(options.target)
    if options.to == "gguf" and options.dtype != "saved":
        raise ConfigError(f"--dtype {options.dtype} is for folders; with --to gguf say --type")
    if options.to == "hf" and options.type != "f16":
        raise ConfigError(f"--type {options.type} is for --to gguf; a folder takes --dtype")
    if target.suffix == ".gguf":
        if options.to == "hf":
            raise ConfigError(f"{target} names a GGUF file; say --to gguf")
        if target.exists():
            raise ConfigError(f"{target} exists; name a file that does not")
    elif target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is not an empty folder; name one that does not exist yet")


def write_folder(model: "Decoder", source: Path, target: Path, console: "Console") -> None:
    """The weights in their family's form, and the rest of the folder."""
    from sobre.models.checkpoint import base_config, read_config, save_model
    from sobre.models.families.memory import check_leaves
    from sobre.models.kept import keeps_fp8

    check_leaves(model.cfg, "the Hugging Face layout")
    theirs = base_config(source)
    kept = (*KEPT, "quantization_config") if keeps_fp8(model) else KEPT
    save_model(model, target, extra={key: theirs[key] for key in kept if key in theirs})
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    n_params = sum(parameter.numel() for parameter in model.parameters())
    console.say(f"{target}: {n_params:,} parameters as {read_config(target)['architectures'][0]}")


def write_gguf(model: "Decoder", source: Path, file: Path, options: ConvertOptions, console: "Console") -> None:
    """One file, and a word on what did not go into it as asked."""
    from sobre.models.gguf.export import save_gguf
    from sobre.plan.llama_cpp import architecture

    console.stage("write, MB", total=1)
    name = Path(options.source).name
    written = save_gguf(model, source, file, type=options.type, name=name, progress=console.update_bytes)
    size = sum(entry.size_bytes for entry in written)
    console.say(f"{file}: {len(written)} tensors, {size / 1e6:,.1f} MB, as {architecture(model.cfg)} for llama.cpp")
    wide = [entry.name for entry in written if options.type == "q8_0" and entry.type == "f16"]
    if wide:
        console.say(f"{len(wide)} tensors stay f16, their rows no multiple of 32: {wide[0]}{', ...' * (len(wide) > 1)}")
    if model.cfg.n_mtp:
        console.say("the multi-token prediction module stays behind: llama.cpp does not take it")
