"""The first parts of a run on their own: `sobre tokenizer` and `sobre data`. `sobre run --resume` goes on from them."""

import json
from typing import Any

from sobre.app.run import RunOptions, run
from sobre.config.recipe import Recipe, load_recipe
from sobre.errors import ConfigError
from sobre.runtime.run_folder import RunFolder, resume_line
from sobre.schemas import VERSION


def begin(part: str, argv: list[str]) -> int:
    """Begin the run of a recipe, and stop after `part`."""
    return run(*read(part, argv), until=part, show=show)


def read(part: str, argv: list[str]) -> tuple[Recipe, RunOptions]:
    """The recipe, and the flags of the run."""
    recipe, options = load_recipe(argv, RunOptions, prog=f"sobre {part}", shortcuts={"--model": "--start.model"})
    if part == "data" and "pretrain" not in recipe.stages:
        raise ConfigError(f"stages={list(recipe.stages)} read no text: token shards are what pretraining reads")
    return recipe, options


def show(folder: RunFolder, options: RunOptions) -> None:
    """What there is now, and the line that goes on."""
    found = document(folder)
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
        return
    tokenizer, data = found["tokenizer"], found["data"]
    print(f"a tokenizer of {tokenizer['vocab_size']:,} tokens in {tokenizer['folder']}")
    if data is not None:
        malformed = sum(event["count"] for event in data["bad_records"].values())
        print(
            f"{data['tokens']:,} tokens of {data['train']['documents']:,} documents to train on, and"
            f" {data['held_out']['documents']:,} documents held out; {malformed:,} malformed,"
            f" {data['duplicates']['count']:,} equal to an earlier one, {data['test_overlap']['count']:,} with a test"
            f" problem ({folder.path / 'data.json'})"
        )
    print(f"to go on:\n  {resume_line(folder.path)}")


def document(folder: RunFolder) -> dict[str, Any]:
    """The same as data (schemas/begun.schema.json)."""
    home, data = folder.state / "tokenizer", folder.path / "data.json"
    words = json.loads((home / "tokenizer.json").read_text(encoding="utf-8"))
    size = 1 + max([*words["model"]["vocab"].values(), *(token["id"] for token in words["added_tokens"])])
    return {
        "schema": VERSION,
        "folder": str(folder.path),
        "tokenizer": {"folder": str(home), "vocab_size": size},
        "data": json.loads(data.read_text(encoding="utf-8")) if data.is_file() else None,
    }
