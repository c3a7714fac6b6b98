"""sobre bench decode: batched generation, prefill included, against transformers.generate on the same weights.

Equal lengths: every request gets the same number of new tokens. Spread ends: each its own number; our engine retires
finished rows, while a batch of transformers runs to its longest row; only tokens that were asked for count, on both
sides. What is compared before: greedy tokens, up to the first difference in each row, which must be a tie. Beside them
our engine with quantised weights and with fixed shapes, against itself; and llama.cpp on GGUF files of the same weights
(f16 against our bfloat16, 8 bits against our 8 bits), where it is installed. Notes say which share of the memory's
bandwidth, measured here, each of ours reads its weights with.
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
from sobre.bench.llama import LACKS, Llama, quantised
from sobre.bench.result import Result, checked
from sobre.bench.timing import Say, Work, as_json, interleave, medians, ratio, time_once
from sobre.config.load import to_dict
from sobre.errors import CheckpointError, ConfigError
from sobre.models.checkpoint import load_model, save_model
from sobre.models.config import ModelConfig, MoEConfig
from sobre.models.decoder import Decoder
from sobre.models.gguf.export import save_gguf
from sobre.models.gguf.file import Type
from sobre.plan.count import params
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer

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
PRESET_TARGET = 3.0
LLAMA_TARGETS = {("mixture-257m", 1): 0.8, ("mixture-257m", 16): 0.8, ("qwen3-0.6b", 1): 0.8, ("qwen3-0.6b", 16): 1.0}
LLAMA_FOUR_BITS = {"mixture-257m": 0.6, "qwen3-0.6b": 0.8}
LLAMA_TYPES = {"bfloat16": ("f16", "equal {} bfloat16"), "int8": ("q8_0", "int8 {}"), "int4": ("q4_0", "int4 {}")}
"""llama.cpp's type of weights, and which of ours it is set beside."""
EXPORTED: tuple[Type, ...] = ("f16", "q8_0")
"""What we write ourselves; its 4 bits are made by llama.cpp from the first."""
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5, "deterministic": 4.0}
"""Of a weight, scales left out."""
READ_BYTES = 2**28
Ids = list[list[int]]


def bench(cfg: DecodeBench, say: Say) -> Result:
    """Check, then time."""
    torch.set_num_threads(cfg.threads)
    with TemporaryDirectory() as place:
        folder = Path(place)
        save_model(ours.build(cfg.shape, cfg.seed), folder)
        mine = {dtype: load_model(folder, dtype=getattr(torch, dtype)) for dtype in cfg.dtypes}
        theirs = {dtype: peer.load_peer(folder, getattr(torch, dtype)) for dtype in cfg.dtypes}
        exact = load_model(folder)
        llamas = _llamas(folder, exact, cfg)
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
    theirs_too = llamas if isinstance(llamas, dict) else {}
    notes += [llamas] if isinstance(llamas, str) else []
    for batch, (kind, llama) in product(cfg.batches, theirs_too.items()):
        name, our_name = f"llama.cpp {LLAMA_TYPES[kind][0]} {batch}", "sobre " + LLAMA_TYPES[kind][1].format(batch)
        if our_name in works:
            works[name], units[name] = llama.generation(random_prompts(cfg, batch), cfg.new), float(cfg.new * batch)
            variants.append((our_name, name, _llama_target(cfg, kind, batch)))
    rounds = interleave(works, rounds=cfg.rounds, warmup=cfg.warmup, say=say)
    found = medians(rounds, units, "tokens")
    notes += bandwidth_notes(cfg, found)
    pairs = [pair for ends, batch in product(ENDS, cfg.batches) for pair in _pairs(cfg, found, ends, batch)] + variants
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
    return random_ids(cfg.seed, batch, cfg.prompt, cfg.shape.vocab_size)


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


def weights_read(shape: ModelConfig, batch: int) -> float:
    """Numbers that a step of `batch` tokens reads: every matrix once, and the experts that at least one token visits,
    each token choosing as if by chance."""
    count = params(shape)
    if not isinstance(shape.ffn, MoEConfig):
        return float(count.active)
    experts, share = count.by_part["experts"], shape.ffn.n_active / shape.ffn.n_experts
    return count.active - experts * share + experts * (1 - (1 - share) ** batch)


def read_bytes_per_s() -> float:
    """How fast this process reads memory that no cache holds: the best of a few sums."""
    numbers = torch.ones(READ_BYTES // 4)
    return READ_BYTES / min(time_once(numbers.sum).wall_s for _ in range(6))


def bandwidth_notes(cfg: DecodeBench, found: dict[str, Any]) -> list[str]:
    """What share of the memory's bandwidth each of ours reads its weights with, the prompts' time included."""
    width = read_bytes_per_s()
    shares = []
    for name in found:
        side, kind, *rest = name.split()
        if side != "sobre" or kind == "spread":
            continue
        form = rest[-1] if kind == "equal" else kind
        read = weights_read(cfg.shape, int(rest[0])) * BYTES[form] * cfg.new
        shares.append(f"{name.removeprefix('sobre ')} {read / found[name]['wall_s'] / width:.0%}")
    return [f"share of {width / 1e9:.1f} GB/s, read by {cfg.threads} thread(s), for weights alone: {', '.join(shares)}"]


def _llamas(folder: Path, model: Decoder, cfg: DecodeBench) -> dict[str, Llama] | str:
    """llama.cpp on files of the same weights, or why there is none. The files may go once they are loaded."""
    if LACKS:
        return LACKS
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    Tokenizer.train(["abcdefgh 01234567"] * 3, TokenizerConfig(vocab_size=300)).save(tokenizer)
    for form in EXPORTED:
        try:
            save_gguf(model, tokenizer, folder / f"{form}.gguf", type=form)
        except CheckpointError as error:
            return f"llama.cpp is left out: {error}"
    quantised(folder / "f16.gguf", folder / "q4_0.gguf", cfg.threads)
    return {kind: Llama(folder / f"{form}.gguf", cfg.threads) for kind, (form, _) in LLAMA_TYPES.items()}


def _llama_target(cfg: DecodeBench, kind: str, batch: int) -> float | None:
    """What share of llama.cpp's speed is asked for, where something is."""
    target = LLAMA_TARGETS.get((cfg.preset, batch))
    return LLAMA_FOUR_BITS[cfg.preset] if target is not None and kind == "int4" else target


def _pairs(cfg: DecodeBench, found: dict[str, Any], ends: str, batch: int) -> list[tuple[str, str, float | None]]:
    """Both sides in the same dtype, and the best of ours over the best of theirs, which is what the target is for."""
    names = {side: [n for n in found if n.startswith(f"{side} {ends} {batch} ")] for side in ("sobre", "transformers")}
    best = {side: max(names[side], key=lambda name: found[name]["per_s"]) for side in names}
    target = PRESET_TARGET if cfg.preset and batch in (1, 16) else TARGETS.get((ends, batch))
    pairs: list[tuple[str, str, float | None]] = [(best["sobre"], best["transformers"], target)]
    same = [(of, over, None) for of, over in zip(names["sobre"], names["transformers"], strict=True)]
    return pairs + [pair for pair in same if pair[:2] != pairs[0][:2]]
