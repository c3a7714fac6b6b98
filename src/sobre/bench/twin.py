"""sobre bench twin: what do experts and latent attention buy? The same seconds, then the same FLOPs, whoever wins.

The twin is dense, with grouped-query attention and as many active parameters. Text, tokenizer, order of the data,
sequence length, optimizer, loss, schedule shape and seeds are the same; learning rates come from one sweep of one size
for each, done with the first seed and for either budget; the best of each then runs the other seeds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from sobre.bench.cells import figures, recipe_of, run_recipe, shrink
from sobre.bench.config import TwinBench
from sobre.bench.queue import Cell, Document, Queue, interleaved, means
from sobre.bench.result import FOLDER, Result
from sobre.bench.shapes import dense_twin
from sobre.bench.story import brief
from sobre.bench.timing import Say
from sobre.config.load import decode, read_recipe, to_dict
from sobre.config.recipe import Recipe
from sobre.plan.count import params
from sobre.tasks.text import documents

SCORE = "pretrain bits per byte"
KINDS = ("seconds", "flops")


def bench(cfg: TwinBench, say: Say) -> Document:
    """Sweep, then the other seeds; do the cells that are missing, then sum up."""
    folder = Path(cfg.folder) if cfg.folder else FOLDER / "twin"
    bases = recipes(cfg, folder, say)

    def work(cell: Cell, place: Path) -> dict[str, Any]:
        report, wall_s = run_recipe(recipe_of(cell.settings), place)
        if not cfg.keep_runs:
            shrink(place)
        return figures(report, wall_s)

    with Queue(folder, "twin", say, max_cells=cfg.max_cells) as queue:
        swept = queue.run(sweep_cells(bases, cfg.lr_scales), work)
        best = best_scales(swept, cfg.lr_scales)
        done = queue.run(seed_cells(bases, best, cfg.rounds), work) if len(best) == len(bases) else []
    whole = len(best) == len(bases) and len(done) == len(bases) * cfg.rounds
    averages = means(done)
    body = {
        "cells": [brief(document) for document in done],
        "sweep": [{**brief(document), "lr_scale": document["settings"]["pretrain"]["lr_scale"]} for document in swept],
        "best_lr_scale": best,
        "means": averages,
        "targets": [],
        "ratios": ratios(averages),
        "configs": {name: to_dict(recipe) for name, recipe in bases.items()},
        "models": {
            name: {"total": params(shape).total, "active": params(shape).active}
            for name, shape in (("experts", cfg.model), ("dense", dense_twin(cfg.model)))
        },
    }
    notes = (
        () if whole else (f"not every cell is done ({len(swept)} of the sweep, {len(done)} of the seeds); run again",)
    )
    return Result("twin", "summary", to_dict(cfg), None, [], body, notes).document(queue.source)


def recipes(cfg: TwinBench, folder: Path, say: Say) -> dict[str, Recipe]:
    """The four contestants: either model with either budget; everything else is the same."""
    recipe = decode(Recipe, [read_recipe(cfg.recipe)])
    paths = cfg.data or recipe.data.paths or (str(generated(folder, recipe, cfg.documents, say)),)
    found = {}
    for kind, amount in zip(KINDS, (cfg.budget, cfg.flops), strict=True):
        for name, model in (("experts", cfg.model), ("dense", dense_twin(cfg.model))):
            found[f"{name} {kind}"] = replace(
                recipe,
                name=f"twin-{name}-{kind}",
                stages=("pretrain",),
                budget=replace(recipe.budget, amount=amount, choose_model=False),
                data=replace(recipe.data, paths=paths),
                model=replace(model, vocab_size=0, max_len=0),
                eval=replace(recipe.eval, ngram_order=0),
            )
    return found


def generated(folder: Path, recipe: Recipe, n_documents: int, say: Say) -> Path:
    """A file of generated text, made once: both models must read the same text in the same order."""
    path = folder / f"text-{recipe.seed}-{n_documents}.jsonl"
    if not path.is_file():
        say(f"generating {n_documents:,} documents into {path}")
        folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        with beside.open("w", encoding="utf-8") as file:
            for text in islice(documents(recipe.seed, recipe.text), n_documents):
                file.write(json.dumps({"text": text, "source": "generated"}, ensure_ascii=False) + "\n")
        beside.replace(path)
    return path


def sweep_cells(bases: Mapping[str, Recipe], scales: Sequence[float]) -> list[Cell]:
    """Every learning rate for every contestant, with the first seed."""
    return interleaved({name: [_cell(name, 0, recipe, scale) for scale in scales] for name, recipe in bases.items()})


def best_scales(swept: Sequence[Document], scales: Sequence[float]) -> dict[str, float]:
    """The factor with the fewest bits, for each contestant whose sweep is complete."""
    by_contestant: dict[str, dict[float, float]] = {}
    for document in swept:
        tried = by_contestant.setdefault(document["cell"]["contestant"], {})
        tried[document["settings"]["pretrain"]["lr_scale"]] = document["figures"][SCORE]
    complete = {name: tried for name, tried in by_contestant.items() if len(tried) == len(set(scales))}
    return {name: min(tried, key=lambda scale: tried[scale]) for name, tried in complete.items()}


def seed_cells(bases: Mapping[str, Recipe], best: Mapping[str, float], rounds: int) -> list[Cell]:
    """Every seed at the best learning rate; the first seed's are cells of the sweep."""
    return interleaved(
        {
            name: [_with_lr(name, seed, replace(recipe, seed=recipe.seed + seed), best[name]) for seed in range(rounds)]
            for name, recipe in bases.items()
        }
    )


def ratios(averages: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bits of the experts over bits of the dense twin, at the same seconds and at the same FLOPs: below 1, they win."""
    found = []
    for kind in KINDS:
        pair = [averages.get(f"{name} {kind}", {}).get(SCORE) for name in ("experts", "dense")]
        if pair[0] is not None and pair[1] is not None:
            of, over = pair[0]["mean"], pair[1]["mean"]
            names = {"of": f"experts {kind}", "over": f"dense {kind}"}
            found.append({**names, "bits": of / over, "winner": _winner(of, over)})
    return found


def _winner(experts: float, dense: float) -> str:
    return "experts" if experts < dense else "dense" if dense < experts else "neither"


def _cell(name: str, seed: int, recipe: Recipe, scale: float) -> Cell:
    return _with_lr(name, seed, recipe, recipe.pretrain.lr_scale * scale)


def _with_lr(name: str, seed: int, recipe: Recipe, lr_scale: float) -> Cell:
    return Cell(name, seed, to_dict(replace(recipe, pretrain=replace(recipe.pretrain, lr_scale=lr_scale))))
