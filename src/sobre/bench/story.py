"""sobre bench story: whole runs of a recipe over seeds, and the targets that they are meant to reach.

The control of a recipe with a cold start and RL has the same budget, RL's share given to the cold start. For recipes
that read text, every base model can also be scored on a fixed file, so that figures of different runs are of one text.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sobre.bench.cells import figures, recipe_of, run_recipe, shrink
from sobre.bench.config import StoryBench
from sobre.bench.queue import Cell, Document, Queue, interleaved, means, target
from sobre.bench.result import FOLDER, Result
from sobre.bench.timing import Say
from sobre.config.load import decode, read_recipe, to_dict
from sobre.config.recipe import Recipe

XZ, BYTE_5GRAM, TEXT_GOAL = 2.27, 2.11, 1.80
"""Bits per byte of the English validation rows: `xz -9`, a byte-level 5-gram with Kneser-Ney, and what is wanted."""
Means = Mapping[str, Mapping[str, Any]]


def bench(cfg: StoryBench, say: Say) -> Document:
    """Do the cells that are missing, then sum up."""
    contestants = recipes(cfg)
    first = next(iter(contestants))
    queue_folder = Path(cfg.folder) if cfg.folder else FOLDER / f"story-{first}"
    cells = interleaved(
        {
            name: [Cell(name, seed, to_dict(replace(recipe, seed=seed))) for seed in range(cfg.seeds)]
            for name, recipe in contestants.items()
        }
    )

    def work(cell: Cell, place: Path) -> dict[str, Any]:
        recipe = recipe_of(cell.settings)
        report, wall_s = run_recipe(recipe, place)
        found = figures(report, wall_s)
        if cfg.val:
            found |= score_text(recipe, place / "run", Path(cfg.val), cfg.val_lang)
        if not cfg.keep_runs:
            shrink(place)
        return found

    with Queue(queue_folder, f"story {first}", say, max_cells=cfg.max_cells) as queue:
        done = queue.run(cells, work)
    averages = means(done)
    notes = [] if len(done) == len(cells) else [f"{len(done)} of {len(cells)} cells are done; run it again to go on"]
    body = {
        "cells": [brief(document) for document in done],
        "means": averages,
        "targets": targets(first, averages),
        "configs": {name: to_dict(recipe) for name, recipe in contestants.items()},
    }
    result = Result(f"story {first}", "summary", to_dict(cfg), None, [], body, tuple(notes))
    return result.document(queue.source)


def recipes(cfg: StoryBench) -> dict[str, Recipe]:
    """The contestants: the recipe, and its control if it can have one."""
    recipe = decode(Recipe, [read_recipe(cfg.recipe)])
    if cfg.budget:
        recipe = replace(recipe, budget=replace(recipe.budget, amount=cfg.budget))
    if cfg.data:
        recipe = replace(recipe, data=replace(recipe.data, paths=cfg.data))
    found = {recipe.name: recipe}
    if cfg.control and {"sft", "rl"} <= set(recipe.stages):
        found["control"] = control(recipe)
    return found


def control(recipe: Recipe) -> Recipe:
    """The same budget, RL's share given to more cold-start training."""
    split = recipe.budget.split
    without = replace(recipe.budget, split=replace(split, sft=split.sft + split.rl))
    stages = tuple(stage for stage in recipe.stages if stage != "rl")
    return replace(recipe, name=f"{recipe.name}-control", stages=stages, budget=without)


def targets(recipe: str, averages: Means) -> list[dict[str, Any]]:
    """What the shipped recipes are meant to reach, beside the means."""

    def mean(name: str, contestant: str = recipe) -> float | None:
        found = averages.get(contestant, {}).get(name)
        return None if found is None else float(found["mean"])

    within = [
        target(
            "wall seconds over the budget, least", _bound(averages, recipe, "wall over budget", "lowest"), ">=", 0.85
        ),
        target(
            "wall seconds over the budget, most", _bound(averages, recipe, "wall over budget", "highest"), "<=", 1.15
        ),
        target("share of the seconds in training or rollouts", mean("training share of the seconds"), ">=", 0.70),
    ]
    if recipe == "demo":
        tasks = [name for name in averages.get(recipe, {}) if name.startswith("rl pass@1 of ")]
        return [
            target("pass@1 after RL", mean("rl pass@1"), ">=", 0.85),
            target("pass@1 of the weakest task", min((mean(name) or 0.0 for name in tasks), default=None), ">=", 0.50),
            target("points over the cold start", _minus(mean("rl pass@1"), mean("sft pass@1")), ">=", 0.20),
            target("points over the control", _minus(mean("rl pass@1"), mean("sft pass@1", "control")), ">", 0.0),
            *within,
        ]
    if recipe == "zero":
        return [
            target("points over the base", _minus(mean("rl pass@1"), mean("pretrain pass@1")), ">=", 0.40),
            target("pass@1 of the base", mean("pretrain pass@1"), "<", 0.20),
            *within,
        ]
    if recipe == "text":
        bits = mean("val bits per byte")
        return [
            target("bits per byte, against xz -9", bits, "<", XZ),
            target("bits per byte, against a 5-gram of bytes", bits, "<", BYTE_5GRAM),
            target("bits per byte", bits, "<=", TEXT_GOAL),
            *within,
        ]
    return within


def score_text(recipe: Recipe, folder: Path, val: Path, lang: str) -> dict[str, float]:
    """Bits per byte of the run's base model on the rows of a file, and of the models without a network."""
    from sobre.data.corpus import Corpus
    from sobre.data.sources import Document as Text
    from sobre.data.sources import read_documents
    from sobre.eval.baselines import baselines
    from sobre.eval.bits import bits_per_byte
    from sobre.models.checkpoint import load_model
    from sobre.tokenizer.tokenizer import Tokenizer

    rows: list[Text] = [row for row in read_documents([val], recipe.data) if not lang or row.lang == lang]
    tokenizer = Tokenizer.load(folder / "base")
    scores = bits_per_byte(load_model(folder / "base"), tokenizer, rows, window=recipe.data.seq_len)
    found = {"val bits per byte": scores["all"].per_byte, "val bytes": float(scores["all"].n_bytes)}
    if recipe.eval.ngram_order:
        corpus = Corpus.open(folder / "state" / "corpus")
        plain = baselines(corpus, tokenizer, rows, recipe.eval.ngram_order)
        found |= {f"val baseline {name}": value for name, value in plain.items()}
    return found


def brief(document: Document) -> Document:
    """A cell inside a summary: what it was and what it found."""
    return {**document["cell"], "date": document["date"], "figures": document["figures"]}


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _bound(averages: Means, contestant: str, name: str, which: str) -> float | None:
    found = averages.get(contestant, {}).get(name)
    return None if found is None else float(found[which])
