"""sobre bench laws: how does the loss fall with the size and with the tokens, at the budgets of a laptop?

A queue of cells: every size with every budget of FLOPs whose tokens per parameter make sense, each a pretraining of its
own to the end of its schedule (learning rates of the recipe, not swept). A cell is a fixed number of steps in float32
on a fixed number of threads: no clock decides anything, so a busy machine finds the same figures. Text, tokenizer and
held-out documents are one for all. The cells that are there are then fitted (plan/own_law.py); the constants that the
planner uses are such a fit, kept as data.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from math import log
from pathlib import Path
from typing import Any

import torch

from sobre.bench.cells import recipe_of
from sobre.bench.config import LawsBench
from sobre.bench.queue import Cell, Document, Queue
from sobre.bench.result import FOLDER, Result
from sobre.bench.story import brief
from sobre.bench.timing import Say
from sobre.config.load import decode, read_recipe, to_dict
from sobre.config.recipe import Recipe
from sobre.data.corpus import Corpus, prepare, training_texts
from sobre.data.events import Events
from sobre.data.loader import PackedLoader
from sobre.data.sources import Document as Text
from sobre.data.sources import read_documents
from sobre.eval.bits import bits_per_byte
from sobre.models.config import MemoryConfig, ModelConfig
from sobre.models.decoder import Decoder
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.optim.schedule import lr_scale
from sobre.plan.count import flops_per_token, params
from sobre.plan.ladder import at_rung
from sobre.plan.own_law import LEAST_CELLS, Point, fit, left_out, spread
from sobre.plan.rules import Rung
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.losses import next_token
from sobre.train.sources import RowSource
from sobre.train.step import train_step


def bench(cfg: LawsBench, say: Say) -> Document:
    """Do the cells that are missing, then fit."""
    recipe = decode(Recipe, [read_recipe(cfg.recipe)])
    recipe = replace(recipe, data=replace(recipe.data, paths=cfg.data))
    found, skipped = cells(cfg, recipe)
    with Queue(Path(cfg.folder) if cfg.folder else FOLDER / "laws", "laws", say, max_cells=cfg.max_cells) as queue:
        place = text_folder(queue.folder, recipe)
        tokenizer, corpus = make_text(place, recipe, say)
        done = queue.run(found, lambda cell, _: work(cell, cfg, tokenizer, corpus))
    notes = [] if len(done) == len(found) else [f"{len(done)} of {len(found)} cells are done; run it again to go on"]
    notes += [f"left out, their tokens per parameter lie outside {cfg.ratio}: {', '.join(skipped)}"] if skipped else []
    body = {
        "cells": [brief(document) for document in done],
        "means": {},
        "targets": [],
        "configs": {"recipe": to_dict(recipe)},
        "law": law(done),
    }
    return Result("laws", "summary", to_dict(cfg), cfg.threads, [], body, tuple(notes)).document(queue.source)


def cells(cfg: LawsBench, recipe: Recipe) -> tuple[list[Cell], list[str]]:
    """The cells, the cheapest first, and the names of those that make no sense."""
    found, skipped = [], []
    for budget in sorted(cfg.flops):
        for size in cfg.sizes:
            model = sized(recipe, size)
            unit = recipe.pretrain.batch_tokens // recipe.data.seq_len * recipe.data.seq_len
            steps = round(budget / (flops_per_token(model, recipe.data.seq_len).train * unit))
            name = f"{size} {budget:g}flop".replace("e+", "e")
            if not cfg.ratio[0] <= steps * unit / multiplied(model) <= cfg.ratio[1]:
                skipped.append(name)
                continue
            for seed in range(cfg.seeds):
                settings = {"size": size, "steps": steps, "seed": seed, "threads": cfg.threads,
                            "held_out": cfg.held_out, "recipe": to_dict(recipe)}  # fmt: skip
                found.append(Cell(name, seed, settings))
    return found, skipped


def sized(recipe: Recipe, size: str) -> ModelConfig:
    """The recipe's kind of model with the sizes of a rung, without tables."""
    width, layers = size.split("x")
    kind = replace(recipe.model, vocab_size=recipe.tokenizer.vocab_size, max_len=recipe.data.seq_len)
    return at_rung(replace(kind, memory=MemoryConfig()), Rung(int(width), int(layers)))


def multiplied(model: ModelConfig) -> int:
    """The law's N."""
    return params(model).active - model.vocab_size * model.d_model


def text_folder(folder: Path, recipe: Recipe) -> Path:
    """Where the tokens of this text lie: other files, or files of other lengths, are another text."""
    files = chain.from_iterable(
        sorted(path.rglob("*")) if path.is_dir() else [path] for path in map(Path, recipe.data.paths)
    )
    lengths = [[str(path), path.stat().st_size] for path in files if path.is_file()]
    about = json.dumps([lengths, to_dict(recipe.data), to_dict(recipe.tokenizer)], sort_keys=True)
    return folder / f"text-{hashlib.blake2b(about.encode(), digest_size=4).hexdigest()}"


def make_text(place: Path, recipe: Recipe, say: Say) -> tuple[Tokenizer, Corpus]:
    """Tokenizer and corpus, made once."""
    if not (place / "corpus").is_dir():
        say(f"reading the text into {place}")
        counted = Events("count")
        texts = training_texts(read_documents(recipe.data.paths, recipe.data, counted), recipe.data)
        Tokenizer.train(texts, recipe.tokenizer).save(place / "tokenizer")
        events = Events(recipe.data.on_bad_record)
        tokenizer = Tokenizer.load(place / "tokenizer")
        prepare(
            read_documents(recipe.data.paths, recipe.data, events), tokenizer, place / "corpus", recipe.data,
            events=events,
        )  # fmt: skip
    return Tokenizer.load(place / "tokenizer"), Corpus.open(place / "corpus")


def work(cell: Cell, cfg: LawsBench, tokenizer: Tokenizer, corpus: Corpus) -> dict[str, float]:
    """Train one cell and score it."""
    torch.set_num_threads(cfg.threads)
    recipe = recipe_of(cell.settings["recipe"])
    seed, steps = recipe.seed + cell.settings["seed"], cell.settings["steps"]
    cfg_model = replace(sized(recipe, cell.settings["size"]), vocab_size=tokenizer.vocab_size)
    model = Decoder(cfg_model)
    model.init_weights(seed)
    names = dict(model.named_parameters())
    optimizer = Optimizer(names, roles(names), recipe.optim)
    source = RowSource(PackedLoader(corpus.shards, recipe.data.seq_len, seed), recipe.pretrain)
    stage, tokens, loss = recipe.pretrain, 0, 0.0
    for step in range(steps):
        model.train()
        rate = stage.lr_scale * lr_scale(step / steps, step, recipe.optim)
        info = train_step(model, optimizer, source.feed(step).batches, next_token, lr_scale=rate, clip=stage.clip)
        tokens, loss = tokens + info.n_tokens, info.loss
    held = [Text(text, name) for name, texts in corpus.held_out.items() for text in texts[: cfg.held_out]]
    score = bits_per_byte(model.eval(), tokenizer, held, window=recipe.data.seq_len)["all"]
    return {
        "n": multiplied(cfg_model),
        "d": tokens,
        "flops": tokens * flops_per_token(cfg_model, recipe.data.seq_len).train,
        "nats per token": score.bits * log(2) / score.n_tokens,
        "bits per byte": score.per_byte,
        "bytes per token": score.n_bytes / score.n_tokens,
        "last training loss": loss,
        "passes": tokens / corpus.shards.n_tokens,
    }


def points(done: Sequence[Document]) -> list[Point]:
    """The cells as the fit wants them."""
    return [
        Point(
            d["settings"]["size"], d["figures"]["n"], d["figures"]["d"], d["figures"]["flops"],
            d["figures"]["nats per token"],
        )
        for d in done
    ]  # fmt: skip


def law(done: Sequence[Document]) -> dict[str, Any] | None:
    """Fitted constants, each cell's fitted and leave-one-out error; None before there are enough cells."""
    seen = points(done)
    if len(seen) < LEAST_CELLS:
        return None
    constants, errors = fit(seen), left_out(seen)
    rows = [
        {**vars(point), "fitted": constants.loss(point.n, point.d) / point.loss - 1, "left_out": error,
         "bits_per_byte": document["figures"]["bits per byte"]}
        for point, error, document in zip(seen, errors, done, strict=True)
    ]  # fmt: skip
    return {
        **constants.to_dict(),
        "error": spread(errors),
        "worst": max(map(abs, errors)),
        "bytes_per_token": done[0]["figures"]["bytes per token"],
        "points": rows,
    }
