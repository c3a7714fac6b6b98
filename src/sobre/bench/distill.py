"""sobre bench distill: what is the best use of the same seconds on a small student: RL, or a teacher?

R1 (arXiv 2501.12948, 4.1) and Qwen3 (2505.09388, table 21) asked it of large models and found the teacher better. Here
a teacher (pretraining, cold start, RL) and a small dense student (pretraining, cold start) are made once for each seed,
with one tokenizer. From that student on, each contestant spends the same seconds (or FLOPs, where the budget is given
in these), of sampling, teacher, training and examinations together: RL, the teacher's verified answers, on-policy
distillation, and more of the cold start as the control.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sobre.bench.cells import figures, recipe_of, run_recipe, shrink
from sobre.bench.config import DistillBench
from sobre.bench.queue import Cell, Document, Queue, interleaved, means, target
from sobre.bench.result import FOLDER, Result
from sobre.bench.story import brief
from sobre.bench.timing import Say
from sobre.config.load import decode, read_recipe, to_dict
from sobre.config.recipe import Recipe, StageName
from sobre.models.config import DenseConfig, ModelConfig
from sobre.train.config import StartConfig

CONTESTANTS: Mapping[str, StageName] = {
    "rl": "rl",
    "answers": "distill",
    "on-policy": "distill",
    "more cold start": "sft",
}
"""Each with the stage that it is."""


def bench(cfg: DistillBench, say: Say) -> Document:
    """Make what is missing of teachers, students and contestants, then sum up."""
    folder = Path(cfg.folder) if cfg.folder else FOLDER / "distill"

    def work(cell: Cell, place: Path) -> dict[str, Any]:
        report, wall_s = run_recipe(recipe_of(cell.settings), place)
        if cell.contestant not in ("teacher", "student") and not cfg.keep_runs:
            shrink(place)
        return figures(report, wall_s)

    with Queue(folder, "distill", say, max_cells=cfg.max_cells) as queue:
        makers = [_cell(name, recipe, seed) for seed in range(cfg.seeds) for name, recipe in begin(cfg).items()]
        made = queue.run(makers, work)
        done: list[Document] = []
        if len(made) == len(makers):
            at = {(cell.contestant, cell.round): queue.folder / "runs" / cell.id / "run" for cell in makers}
            contestants = {
                name: [
                    _cell(name, contestant(name, cfg, at["teacher", seed], at["student", seed]), seed)
                    for seed in range(cfg.seeds)
                ]
                for name in CONTESTANTS
            }
            cells = interleaved(contestants)
            done = queue.run(cells, work)
    whole = len(done) == len(CONTESTANTS) * cfg.seeds
    averages = means([*made, *done])
    body = {
        "cells": [brief(document) for document in [*made, *done]],
        "means": averages,
        "targets": targets(averages),
        "configs": {name: to_dict(recipe) for name, recipe in begin(cfg).items()},
    }
    notes = () if whole else (f"{len(made)} models and {len(done)} contestants are done; run it again to go on",)
    return Result("distill", "summary", to_dict(cfg), None, [], body, notes).document(queue.source)


def begin(cfg: DistillBench) -> dict[str, Recipe]:
    """Teacher and student: the recipe with the tasks of the comparison, in both sizes."""
    recipe = decode(Recipe, [read_recipe(cfg.recipe)])
    tasks = replace(recipe.tasks, names=cfg.tasks, langs=("en",), difficulty=(1, cfg.difficulty))
    tasks = replace(tasks, test_difficulty=cfg.difficulty)
    text = replace(recipe.text, names=cfg.tasks, langs=("en",), difficulty=(1, cfg.difficulty))
    curriculum = replace(recipe.rl.curriculum, difficulty=(1, cfg.difficulty))
    rl = replace(recipe.rl, curriculum=curriculum, n_prompts=cfg.answers // cfg.group, group_size=cfg.group)
    recipe = replace(recipe, tasks=tasks, text=text, rl=rl)
    recipe = replace(recipe, eval=replace(recipe.eval, n_problems=cfg.problems, n_sampled=min(100, cfg.problems)))
    small = replace(recipe.model, d_model=cfg.student_width, n_layers=2, ffn=DenseConfig(d_ff=3 * cfg.student_width))
    large = replace(recipe.model, d_model=cfg.teacher_width, n_layers=3)
    sizes: dict[str, tuple[ModelConfig, tuple[StageName, ...], str]] = {
        "teacher": (large, cfg.teacher_stages, cfg.teacher_flops),
        "student": (small, ("pretrain", "sft"), cfg.student_flops),
    }
    return {
        name: replace(
            recipe,
            name=f"distill-{name}",
            model=model,
            stages=stages,
            budget=replace(recipe.budget, amount=flops, choose_model=False),
        )
        for name, (model, stages, flops) in sizes.items()
    }


def contestant(name: str, cfg: DistillBench, teacher: Path, student: Path) -> Recipe:
    """What one contestant does with its budget, from the student on."""
    recipe = begin(cfg)["student"]
    distill, folder = recipe.distill, cfg.teacher_stages[-1]
    answers = replace(
        distill.answers, teacher=str(teacher / folder), max_tokens=recipe.rl.max_tokens, keep=2, plain_share=0.0
    )
    sft = recipe.sft
    return replace(
        recipe,
        name=f"distill-{name.replace(' ', '-')}",
        stages=(CONTESTANTS[name],),
        start=StartConfig(model=str(student / "sft")),
        budget=replace(recipe.budget, amount=cfg.budget),
        distill=replace(
            distill,
            method="on_policy" if name == "on-policy" else "text",
            answers=answers,
            batch_tokens=sft.batch_tokens,
            micro_tokens=sft.micro_tokens,
            n_prompts=cfg.answers,
            max_tokens=recipe.rl.max_tokens,
            lr_scale=cfg.lr_on_policy if name == "on-policy" else cfg.lr_answers,
        ),
        sft=replace(sft, lr_scale=cfg.lr_answers),
        rl=replace(recipe.rl, lr_scale=recipe.rl.lr_scale * cfg.lr_rl),
    )


def targets(averages: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What both papers found, beside the means."""

    def score(name: str) -> float | None:
        found = averages.get(name, {}).get(f"{CONTESTANTS[name]} pass@1")
        return None if found is None else float(found["mean"])

    def points(name: str, over: str) -> float | None:
        a, b = score(name), score(over)
        return None if a is None or b is None else a - b

    return [
        target("points of the teacher's answers over RL", points("answers", "rl"), ">", 0.0),
        target("points of on-policy distillation over RL", points("on-policy", "rl"), ">", 0.0),
        target("points of on-policy distillation over the teacher's answers", points("on-policy", "answers"), ">", 0.0),
        target("points of RL over more cold start", points("rl", "more cold start"), ">", 0.0),
    ]


def _cell(name: str, recipe: Recipe, seed: int) -> Cell:
    return Cell(name, seed, to_dict(replace(recipe, seed=seed)))
