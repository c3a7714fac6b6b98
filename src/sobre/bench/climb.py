"""sobre bench climb: seconds of GRPO until 80 % of held-out problems are answered right, ours beside TRL's.

For each seed a model is made from nothing by what one recipe does before reinforcement learning, whose seconds are not
counted. From that very folder both sides learn: the same stream of problems, answers for each of them, longest answer,
reward, loss, optimizer and clipping. Ours is the source of rollouts and the step of `sobre rl`, theirs `GRPOTrainer`.
Each side runs every learning rate of one sweep with the first seed, and the other seeds at its own best.

Every few steps both answer the same held-out problems greedily, through the same engine, in time that neither pays for.
A cell ends when the goal is reached, or when its seconds are over: then it was not reached within them, and is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sobre.bench import climbers, trl_peer
from sobre.bench.cells import figures, recipe_of, run_recipe
from sobre.bench.climbers import beginning
from sobre.bench.config import ClimbBench
from sobre.bench.queue import Cell, Document, Queue, interleaved, means, target
from sobre.bench.result import FOLDER, Result
from sobre.bench.story import brief
from sobre.bench.timing import Say
from sobre.config.load import to_dict
from sobre.errors import RunError
from sobre.runtime.run_folder import model_folder

START, OURS, THEIRS = "start", "sobre", "trl"
SIDES = (OURS, THEIRS)
TARGET = 5.0
SECONDS = "seconds to the goal"
WITHIN = "seconds"


def bench(cfg: ClimbBench, say: Say) -> Document:
    """Make the starts, sweep the rates, climb with every seed; do the cells that are missing, then sum up."""
    trl_peer.require()
    torch.set_num_threads(cfg.threads)
    folder = Path(cfg.folder) if cfg.folder else FOLDER / "climb"
    starts = [Cell(START, seed, to_dict(replace(beginning(cfg), seed=seed))) for seed in range(cfg.seeds)]
    with Queue(folder, "climb", say, max_cells=cfg.max_cells) as queue:

        def work(cell: Cell, place: Path) -> dict[str, Any]:
            run = queue.folder / "runs" / starts[cell.round].id / "run"
            return climb(cfg, cell, model_folder(run, beginning(cfg).stages[-1]), place, say)

        made = queue.run(starts, make)
        whole = len(made) == len(starts)
        sweep = interleaved({side: [contestant(cfg, side, 0, lr) for lr in cfg.lrs] for side in SIDES})
        swept = queue.run(sweep, work) if whole else []
        best = {side: best_rate(swept, side) for side in SIDES} if len(swept) == len(sweep) else {}
        done = queue.run(finals(cfg, best), work) if best else []
    ratio = speedup(done) if best and len(done) == len(SIDES) * cfg.seeds else None
    body = {
        "cells": [brief(document) for document in [*made, *done]],
        "sweep": [brief(document) for document in swept],
        "means": means([*made, *done]),
        "targets": [target("times as soon at the goal as TRL, median of the seeds", ratio, ">=", TARGET)],
        "configs": {START: to_dict(beginning(cfg))},
    }
    return Result(
        "climb", "summary", to_dict(cfg), cfg.threads, [], body, notes(cfg, made, swept, best, done)
    ).document(queue.source)


def make(cell: Cell, place: Path) -> dict[str, float]:
    """Run the recipe of a start; its folder stays."""
    report, wall_s = run_recipe(recipe_of(cell.settings), place)
    return figures(report, wall_s)


def contestant(cfg: ClimbBench, side: str, seed: int, lr: float) -> Cell:
    dtype = cfg.dtype if side == OURS else cfg.peer_dtype
    return Cell(f"{side} {lr:g}", seed, {**_settings(cfg, seed), "side": side, "lr": lr, "dtype": dtype})


def finals(cfg: ClimbBench, best: Mapping[str, float]) -> list[Cell]:
    """Both sides with every seed at their best rates; those of the first seed are cells of the sweep."""
    return interleaved({side: [contestant(cfg, side, seed, best[side]) for seed in range(cfg.seeds)] for side in SIDES})


def climb(cfg: ClimbBench, cell: Cell, start: Path, place: Path, say: Say) -> dict[str, Any]:
    """One contestant from one start, until the goal or the end of its seconds."""
    if not (start / "config.json").is_file():
        raise RunError(f"{start} is gone, and its cell says that it was made; remove that cell's file to make it anew")
    course = climbers.Course(cfg, start, cell.round)
    ascent = climbers.Ascent(course.score, cfg.goal, cfg.every, cfg.seconds, partial(_tell, say, cell))
    if cell.settings["side"] == OURS:
        climbers.climb_ours(course, ascent, cell.settings["lr"])
    else:
        trl_peer.climb(course, ascent, cell.settings["lr"], place)
    return {
        WITHIN: ascent.seconds,
        "steps": float(ascent.steps),
        "reached": float(ascent.reached),
        **({SECONDS: ascent.seconds} if ascent.reached else {}),
        "right at the start": ascent.curve[0][2],
        "right at the end": ascent.curve[-1][2],
        "curve": [list(point) for point in ascent.curve],
    }


def best_rate(swept: Sequence[Document], side: str) -> float:
    """The rate at which a side was first at the goal; where it was at none, the one that ended highest."""

    def rank(document: Document) -> tuple[float, float]:
        found = document["figures"]
        return found.get(SECONDS, float("inf")), -found["right at the end"]

    return float(min((d for d in swept if d["settings"]["side"] == side), key=rank)["settings"]["lr"])


def speedup(done: Sequence[Document]) -> float:
    """Median over the seeds of their seconds to the goal over ours, at least: who did not reach it counts with all the
    seconds that it had. Where we did not reach it ourselves, a seed counts 0."""
    found: dict[int, dict[str, Mapping[str, Any]]] = {}
    for document in done:
        found.setdefault(document["cell"]["round"], {})[document["settings"]["side"]] = document["figures"]
    return median(
        seed[THEIRS][WITHIN] / seed[OURS][SECONDS] if seed[OURS]["reached"] else 0.0 for seed in found.values()
    )


def notes(
    cfg: ClimbBench,
    made: Sequence[Document],
    swept: Sequence[Document],
    best: Mapping[str, float],
    done: Sequence[Document],
) -> tuple[str, ...]:
    """How far the queue is, who did not reach the goal, and whose best rate lies at the edge of the sweep."""
    found = []
    if len(done) < len(SIDES) * cfg.seeds:
        found.append(
            f"{len(made)} starts, {len(swept)} of the sweep, {len(done)} climbs are done; run it again to go on"
        )
    cells = {document["cell"]["id"]: document for document in [*swept, *done]}
    for document in cells.values():
        cell, seen = document["cell"], document["figures"]
        if not seen["reached"]:
            found.append(
                f"{cell['contestant']}, seed {cell['round']}: {cfg.goal:.0%} not reached within {seen[WITHIN]:,.0f} s"
                f" ({seen['right at the end']:.0%} at the end)"
            )
    edges = (min(cfg.lrs), max(cfg.lrs)) if len(cfg.lrs) > 1 else ()
    found += [
        f"the best rate of {side}, {lr:g}, lies at the edge of the sweep" for side, lr in best.items() if lr in edges
    ]
    return tuple(found)


def _settings(cfg: ClimbBench, seed: int) -> dict[str, Any]:
    """What decides a climb, beside its rate and dtype."""
    names = ("tasks", "difficulty", "goal", "problems", "every", "seconds", "prompts", "group_size", "new", "threads")
    told = to_dict(cfg)
    return {name: told[name] for name in names} | {"start": to_dict(replace(beginning(cfg), seed=seed))}


def _tell(say: Say, cell: Cell, point: tuple[int, float, float]) -> None:
    step, seconds, share = point
    say(f"{cell.contestant}, seed {cell.round}: step {step}, {seconds:.0f} s, {share:.0%} right")
