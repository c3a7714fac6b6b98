"""sobre bench decode: batched generation, prefill included, against transformers.generate on the same weights.

Equal lengths: every request gets the same number of new tokens. Spread ends: each its own number; our engine retires
finished rows, while a batch of transformers runs to its longest row; only tokens that were asked for count, on both
sides. What is compared before: greedy tokens, up to the first difference in each row, which must be a tie. Beside them
our engine with quantised weights and with fixed shapes, against itself.
"""

import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sobre.bench import ours, peer
from sobre.bench.config import DecodeBench
from sobre.bench.result import Result, checked
from sobre.bench.timing import Say, Work, as_json, interleave, medians, ratio
from sobre.config.load import to_dict
from sobre.errors import ConfigError
from sobre.models.checkpoint import load_model, save_model
from sobre.models.decoder import Decoder

TIE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Two tokens whose logits are nearer than this may swap places."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "deterministic": ("float32", {"deterministic": True}),
    "int8": ("bfloat16", {"weights": "int8"}),
    "int4": ("bfloat16", {"weights": "int4"}),
}
"""What else our engine can do: compared with itself in the dtype given, at equal lengths."""
CHECKED_ROWS = 8
PROBE = 4
"""New tokens of the trial that chooses the peer's experts."""
ENDS = ("equal", "spread")
TARGETS = {("equal", 128): 2.5, ("spread", 128): 3.0}
Ids = list[list[int]]


def bench(cfg: DecodeBench, say: Say) -> Result:
    """Check, then time."""
    torch.set_num_threads(cfg.threads)
    with TemporaryDirectory() as place:
        folder = Path(place)
        save_model(ours.build(cfg.model, cfg.seed), folder)
        mine = {dtype: load_model(folder, dtype=getattr(torch, dtype)) for dtype in cfg.dtypes}
        theirs = {dtype: peer.load_peer(folder, getattr(torch, dtype)) for dtype in cfg.dtypes}
        exact = load_model(folder)
    check = [line for dtype in cfg.dtypes for line in _check(cfg, dtype, mine[dtype], theirs[dtype], exact)]
    for line in check:
        say(f"{line['what']}: {line['value']:.2g} (at most {line['limit']:.0e})")
    works: dict[str, Work] = {}
    units: dict[str, float] = {}
    notes = []
    for batch, dtype in product(cfg.batches, cfg.dtypes):
        prompts = random_prompts(cfg, batch)
        experts = peer.faster_experts(theirs[dtype], peer.generation(theirs[dtype], prompts, PROBE))
        notes.append(f"transformers, batch {batch}, {dtype}: experts by {experts}")
        for ends in ENDS:
            lengths = new_tokens(cfg, ends, batch)
            whole = peer.generation(theirs[dtype], prompts, max(lengths), temperature=cfg.temperature)
            pair = {
                "sobre": ours.generation(mine[dtype], prompts, lengths, temperature=cfg.temperature),
                "transformers": peer.with_experts(theirs[dtype], experts, whole),
            }
            works |= {f"{side} {ends} {batch} {dtype}": work for side, work in pair.items()}
            units |= {f"{side} {ends} {batch} {dtype}": float(sum(lengths)) for side in pair}
    variants: list[tuple[str, str, float | None]] = []
    for batch, (name, (dtype, options)) in product(cfg.batches, VARIANTS.items()):
        if dtype not in cfg.dtypes:
            continue
        lengths, plain = new_tokens(cfg, "equal", batch), f"sobre equal {batch} {dtype}"
        prompts = random_prompts(cfg, batch)
        try:
            work = ours.generation(mine[dtype], prompts, lengths, temperature=cfg.temperature, engine_options=options)
        except ConfigError as error:
            notes.append(f"{name} is left out: {error}")
            continue
        works[f"sobre {name} {batch}"], units[f"sobre {name} {batch}"] = work, float(sum(lengths))
        variants.append((f"sobre {name} {batch}", plain, None))
    rounds = interleave(works, rounds=cfg.rounds, warmup=cfg.warmup, say=say)
    found = medians(rounds, units, "tokens")
    pairs = [pair for ends, batch in product(ENDS, cfg.batches) for pair in _pairs(found, ends, batch)] + variants
    body = {
        "rounds": as_json(rounds),
        "medians": found,
        "ratios": [ratio(rounds, of, over, units=units, target=target) for of, over, target in pairs],
    }
    return Result("decode", "timing", to_dict(cfg), cfg.threads, check, body, tuple(notes))


def new_tokens(cfg: DecodeBench, ends: str, batch: int) -> list[int]:
    """How many new tokens each request gets."""
    if ends == "equal":
        return [cfg.new] * batch
    rng = random.Random(f"{cfg.seed}/spread/{batch}")
    return [rng.randint(*cfg.spread) for _ in range(batch)]


def random_prompts(cfg: DecodeBench, batch: int) -> Ids:
    """Prompts of random tokens, no two alike, so that none is computed for another."""
    return random_ids(cfg.seed, batch, cfg.prompt, cfg.model.vocab_size)


def random_ids(seed: int, rows: int, length: int, vocab_size: int) -> Ids:
    """Rows of random tokens."""
    rng = random.Random(f"{seed}/prompts")
    return [[rng.randrange(vocab_size) for _ in range(length)] for _ in range(rows)]


def _check(cfg: DecodeBench, dtype: str, mine: Decoder, theirs: Any, exact: Decoder) -> list[dict[str, Any]]:
    prompts = random_prompts(cfg, CHECKED_ROWS)
    my_ids = ours.generation(mine, prompts, [cfg.new] * CHECKED_ROWS)()
    their_ids = peer.generation(theirs, prompts, cfg.new)()
    gap, share = compare_greedy(prompts, my_ids, their_ids, exact)  # type: ignore[arg-type]
    what = f"greedy tokens, {dtype}: largest gap between two tokens that swapped places"
    return [checked(what, gap, TIE[dtype]) | {"share_compared": share}]


def compare_greedy(prompts: Ids, mine: Ids, theirs: Ids, exact: Decoder) -> tuple[float, float]:
    """(largest gap in logits where the two first differ, share of the tokens up to there).

    After its first difference a row continues another text, so nothing behind it can be compared.
    """
    worst, n_compared = 0.0, 0
    for prompt, my_row, their_row in zip(prompts, mine, theirs, strict=True):
        same = first_difference(my_row, their_row)
        n_compared += same
        if same < len(my_row):
            logits_V = ours.logits_at(exact, [*prompt, *my_row[:same]])
            top = float(logits_V.max())
            worst = max(worst, top - float(logits_V[my_row[same]]), top - float(logits_V[their_row[same]]))
    return worst, n_compared / sum(map(len, mine))


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens the two begin with in common."""
    if len(a) != len(b):
        raise ValueError(f"rows of {len(a)} and {len(b)} tokens: both sides were asked for equally many")
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def _pairs(found: dict[str, Any], ends: str, batch: int) -> list[tuple[str, str, float | None]]:
    """Both sides in the same dtype, and the best of ours over the best of theirs, which is what the target is for."""
    names = {side: [n for n in found if n.startswith(f"{side} {ends} {batch} ")] for side in ("sobre", "transformers")}
    best = {side: max(names[side], key=lambda name: found[name]["per_s"]) for side in names}
    pairs: list[tuple[str, str, float | None]] = [(best["sobre"], best["transformers"], TARGETS.get((ends, batch)))]
    same = [(of, over, None) for of, over in zip(names["sobre"], names["transformers"], strict=True)]
    return pairs + [pair for pair in same if pair[:2] != pairs[0][:2]]
