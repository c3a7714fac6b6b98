"""sobre bench frugality: which quality for how many seconds, FLOPs and dollars? A race between named contestants.

    dense adamw            Llama's shape with AdamW
    dense muon             the same with Muon
    deepseek-v3            its parts as published: latent attention, experts, multi-token prediction, AdamW
    ours                   latent attention, experts, n-gram memory, Muon
    ours without tables    the same without the memory
    dense with tables      the dense shape with the same memory, Muon
    nanochat               a peer that we did not write, from your own clone (bench/nanochat_run.py)

All have as many active parameters (tables and their two products left out). Text, held-out documents, batch, sequence
length, schedule and seeds are the same. Every contestant gets its learning rate from the same sweep, done with the
first seed on the shortest rung; rounds interleave them. One race is over equal seconds, one over equal FLOPs; a rung of
the ladder is a share of the budget at which a run of its own ends, cool-down included, so that every point of a curve
is a finished model. Quality is bits per byte of held-out text, or, with --reasoning, pass@1 after the last stage.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sobre.bench import nanochat_run
from sobre.bench.cells import figures, recipe_of, run_recipe, shrink
from sobre.bench.config import FrugalityBench
from sobre.bench.queue import Cell, Document, Queue, interleaved, means, target
from sobre.bench.race_picture import picture
from sobre.bench.result import FOLDER, Result
from sobre.bench.shapes import dense_twin
from sobre.bench.story import brief
from sobre.bench.timing import Say
from sobre.bench.twin import generated
from sobre.config.load import decode, read_recipe, to_dict
from sobre.config.recipe import Recipe
from sobre.errors import ConfigError
from sobre.models.config import MemoryConfig, ModelConfig
from sobre.plan.budget import parse_budget
from sobre.plan.count import params

NANOCHAT = "nanochat"
BITS, RIGHT = "pretrain bits per byte", "pass@1"
WITH_TABLES = ("ours", "dense with tables")
WITH_ADAMW = ("dense adamw", "deepseek-v3")
MEASURES = {"seconds": "wall_s", "flops": "flops", "usd": "usd", "joules": "joules"}
"""What a run is set against, and the figure of a cell that says it."""
OURS = ("ours", "ours without tables", "dense with tables")
"""The best of these on the longest rung runs against the others."""
WANTED = (("dense adamw", 1 / 3), ("dense muon", 1 / 2), (NANOCHAT, 2 / 3))
"""Of whose seconds how large a share ours may take to their final quality."""


@dataclass(frozen=True)
class Entry:
    """One contestant on one rung of one race."""

    contestant: str
    kind: str
    """seconds or flops."""
    share: float
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.contestant} {self.kind} {self.share:g}"


def bench(cfg: FrugalityBench, say: Say) -> Document:
    """Sweep, then every rung and seed; do the cells that are missing, then sum up and draw."""
    folder = Path(cfg.folder) if cfg.folder else FOLDER / "frugality"
    if cfg.nanochat:
        nanochat_run.check(Path(cfg.nanochat))
    found = entries(cfg, folder, say)
    with Queue(folder, "frugality", say, max_cells=cfg.max_cells) as queue:
        swept = queue.run(sweep(found, cfg), lambda cell, place: work(cell, place, cfg))
        rates = best_rates(swept, cfg)
        cells = rounds(found, rates, cfg.seeds)
        done = queue.run(cells, lambda cell, place: work(cell, place, cfg)) if cells else []
    whole = bool(cells) and len(done) == len(cells)
    averages = means(done)
    points = curve_points(found, averages, score_of(cfg))
    winners = {kind: _winner(points, kind, cfg) for kind in dict.fromkeys(entry.kind for entry in found)}
    body = {
        "cells": [brief(document) for document in done],
        "sweep": [{**brief(document), "lr_scale": document["settings"]["lr_scale"]} for document in swept],
        "best_lr_scale": rates,
        "means": averages,
        "targets": [] if cfg.reasoning else targets(points),
        "race": {"score": score_of(cfg), "points": points, "winners": winners},
        "configs": {entry.name: to_dict(entry.recipe) for entry in found},
        "models": {entry.contestant: counts(entry.recipe.model) for entry in found},
    }
    notes = (
        [] if whole else [f"not every cell is done ({len(swept)} of the sweep, {len(done)} of the rounds); run again"]
    )
    notes += at_the_edge(rates, cfg.lr_scales)
    if points:
        pictured = folder / queue.source.short / "race.svg"
        pictured.write_text(picture(points, score_of(cfg)), encoding="utf-8")
        notes.append(f"picture: {pictured}")
    notes += _write_winners(folder / queue.source.short, found, winners, rates) if whole else []
    return Result("frugality", "summary", to_dict(cfg), None, [], body, tuple(notes)).document(queue.source)


def score_of(cfg: FrugalityBench) -> str:
    """The figure of a cell that is its quality."""
    return f"{decode(Recipe, [read_recipe(cfg.recipe)]).stages[-1]} {RIGHT}" if cfg.reasoning else BITS


def entries(cfg: FrugalityBench, folder: Path, say: Say) -> list[Entry]:
    """Every contestant on every rung of both races."""
    recipe = decode(Recipe, [read_recipe(cfg.recipe)])
    if not cfg.reasoning:
        paths = cfg.data or recipe.data.paths or (str(generated(folder, recipe, cfg.documents, say)),)
        recipe = replace(recipe, stages=("pretrain",), data=replace(recipe.data, paths=paths))
        recipe = replace(recipe, eval=replace(recipe.eval, ngram_order=0))
    whole = {"seconds": cfg.budget, "flops": cfg.flops}
    found = []
    for kind, amount in whole.items():
        if amount:
            for share in sorted(cfg.ladder):
                spent = replace(recipe.budget, amount=_share_of(amount, share, kind), choose_model=False)
                for name in names(cfg):
                    found.append(Entry(name, kind, share, contestant(name, replace(recipe, budget=spent), cfg)))
    return [entry for entry in found if (entry.contestant, entry.kind) != (NANOCHAT, "flops")]


def names(cfg: FrugalityBench) -> tuple[str, ...]:
    """Who runs."""
    return (*cfg.contestants, NANOCHAT) if cfg.nanochat else cfg.contestants


def contestant(name: str, recipe: Recipe, cfg: FrugalityBench) -> Recipe:
    """The recipe of one contestant: model and optimizer differ, nothing else does."""
    is_dense = name.startswith("dense") or name == NANOCHAT
    model = replace(dense_twin(cfg.model) if is_dense else cfg.model, vocab_size=0, max_len=0)
    if name in WITH_TABLES:
        model = replace(model, memory=cfg.memory)
    model = replace(model, n_mtp=int(name == "deepseek-v3"))
    optim = replace(recipe.optim, kind="adamw" if name in WITH_ADAMW else "muon")
    slug = name.replace(" ", "-")
    return replace(recipe, name=f"frugality-{slug}", model=model, optim=optim)


def counts(model: ModelConfig) -> dict[str, int]:
    """Parameters, for the table; the vocabulary is that of the run, and is left out here."""
    plain = replace(model, memory=MemoryConfig())
    return {"total": params(model).total, "active": params(model).active, "without_tables": params(plain).total}


def sweep(found: Sequence[Entry], cfg: FrugalityBench) -> list[Cell]:
    """Every learning rate for every contestant of either race, on the shortest rung, with the first seed."""
    shortest = min(cfg.ladder)
    firsts = [entry for entry in found if entry.share == shortest]
    return interleaved({entry.name: [cell(entry, 0, scale) for scale in cfg.lr_scales] for entry in firsts})


def best_rates(swept: Sequence[Document], cfg: FrugalityBench) -> dict[str, float]:
    """Factor on the learning rates of "contestant kind", for each whose sweep is complete."""
    sign = -1 if cfg.reasoning else 1
    tried: dict[str, dict[float, float]] = {}
    for document in swept:
        settings = document["settings"]
        key = f"{settings['contestant']} {settings['kind']}"
        tried.setdefault(key, {})[settings["lr_scale"]] = sign * document["figures"][score_of(cfg)]
    whole = {key: values for key, values in tried.items() if len(values) == len(set(cfg.lr_scales))}
    return {key: min(values, key=lambda scale: values[scale]) for key, values in whole.items()}


def at_the_edge(rates: Mapping[str, float], scales: Sequence[float]) -> list[str]:
    """Whose best rate is the smallest or largest that was tried: it may do better still."""
    ends = (min(scales), max(scales))
    edge = [key for key, scale in rates.items() if scale in ends and len(set(scales)) > 1]
    return [f"at the edge of the sweep, widen --lr-scales to be fair: {', '.join(edge)}"] if edge else []


def rounds(found: Sequence[Entry], rates: Mapping[str, float], seeds: int) -> list[Cell]:
    """Every entry with every seed at its own best rate, once all sweeps are done; those of the sweep are among them."""
    keys = {entry.name: f"{entry.contestant} {entry.kind}" for entry in found}
    if not set(keys.values()) <= set(rates):
        return []
    each = {entry.name: [cell(entry, seed, rates[keys[entry.name]]) for seed in range(seeds)] for entry in found}
    return interleaved(each)


def cell(entry: Entry, seed: int, lr_scale: float) -> Cell:
    """One run. The rate is a factor on the recipe's, of pretraining and fine-tuning alike."""
    recipe = entry.recipe
    recipe = replace(recipe, seed=recipe.seed + seed)
    for stage in ("pretrain", "sft"):
        settings = getattr(recipe, stage)
        recipe = replace(recipe, **{stage: replace(settings, lr_scale=settings.lr_scale * lr_scale)})
    settings = {"contestant": entry.contestant, "kind": entry.kind, "share": entry.share, "lr_scale": lr_scale}
    return Cell(entry.name, seed, {**settings, "recipe": to_dict(recipe)})


def work(cell: Cell, place: Path, cfg: FrugalityBench) -> dict[str, float]:
    """Run one cell in a process of its own."""
    recipe = recipe_of(cell.settings["recipe"])
    if cell.settings["contestant"] == NANOCHAT:
        return nanochat_run.run(Path(cfg.nanochat), recipe, cell.settings["lr_scale"], place)
    report, wall_s = run_recipe(recipe, place)
    found = figures(report, wall_s)
    if not cfg.keep_runs:
        shrink(place)
    return found


def curve_points(found: Sequence[Entry], averages: Mapping[str, Mapping[str, Any]], score: str) -> list[dict[str, Any]]:
    """Quality with its band, and what it took, of every entry that has a run."""
    points = []
    for entry in found:
        of = averages.get(entry.name, {})
        if score in of:
            costs = {measure: of[figure]["mean"] for measure, figure in MEASURES.items() if figure in of}
            where = {"contestant": entry.contestant, "kind": entry.kind, "share": entry.share}
            points.append({**where, **of[score], **costs})
    return points


def seconds_to(points: Sequence[Mapping[str, Any]], quality: float) -> float | None:
    """Seconds at which a curve reaches `quality`, between two rungs by the logarithm of the seconds.

    On the first rung already: the seconds of that rung, which are then the most it can be. None: never reached.
    """
    ordered = sorted(points, key=lambda point: point["seconds"])
    before = None
    for point in ordered:
        if point["mean"] <= quality:
            if before is None:
                return float(point["seconds"])
            part = (before["mean"] - quality) / (before["mean"] - point["mean"])
            low, high = math.log(before["seconds"]), math.log(point["seconds"])
            return math.exp(low + part * (high - low))
        before = point
    return None


def targets(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How much of a rival's seconds our best takes to the rival's final quality, beside what is wanted."""
    timed = [point for point in points if point["kind"] == "seconds"]
    finals = {point["contestant"]: point for point in timed if point["share"] == 1}
    best = min((name for name in OURS if name in finals), key=lambda name: finals[name]["mean"], default=None)
    mine = [point for point in timed if point["contestant"] == best]
    found = []
    for rival, limit in WANTED:
        if best and rival in finals:
            reached = seconds_to(mine, finals[rival]["mean"])
            share = None if reached is None else reached / finals[rival]["seconds"]
            found.append(target(f"{best}: seconds to the final bits of {rival}, over its own", share, "<=", limit))
    return found


def _winner(points: Sequence[Mapping[str, Any]], kind: str, cfg: FrugalityBench) -> dict[str, Any] | None:
    """Who is best on the longest rung, and whether the bands of the first two keep apart."""
    longest = [point for point in points if (point["kind"], point["share"]) == (kind, max(cfg.ladder))]
    ranked = sorted(longest, key=lambda point: -point["mean"] if cfg.reasoning else point["mean"])
    if not ranked:
        return None
    first = ranked[0]
    apart = [p for p in ranked[1:] if p["lowest"] <= first["highest"] and first["lowest"] <= p["highest"]]
    return {"contestant": first["contestant"], "mean": first["mean"], "clear": not apart}


def _write_winners(
    folder: Path, found: Sequence[Entry], winners: Mapping[str, Any], rates: Mapping[str, float]
) -> list[str]:
    """The recipe of each race's winner, ready for `sobre run`; a peer's is not ours to write."""
    notes = []
    for kind, winner in winners.items():
        won = [e for e in found if winner and (e.contestant, e.kind) == (winner["contestant"], kind)]
        if won and won[-1].contestant != NANOCHAT:
            recipe = cell(won[-1], 0, rates[f"{won[-1].contestant} {kind}"]).settings["recipe"]
            path = folder / f"winner-{kind}.json"
            path.write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
            notes.append(f"the winner over equal {kind}: sobre run {path}")
    return notes


def _share_of(amount: str, share: float, kind: str) -> str:
    """A share of a budget, as a budget; one that is too small for a run is refused before any has begun."""
    whole = parse_budget(amount, price_usd_per_h=0.0)
    if whole.kind != kind:
        raise ConfigError(f"{amount!r} is no budget in {kind}: write {'10m' if kind == 'seconds' else '6e13flop'}")
    part = f"{whole.amount * share:g}{'s' if kind == 'seconds' else 'flop'}".replace("e+", "e")
    return parse_budget(part, price_usd_per_h=0.0).text
