"""nanochat's own training in the race: its model, optimizer, tokenizer and rates, from your clone, on the same text.

None of its code is here; a clone (https://github.com/karpathy/nanochat) is imported in a process of its own, which also
needs its two tokenizer packages: pip install rustbpe tiktoken. To run it by hand, on the settings that a cell left:

    python -m sobre.bench.nanochat_run bench-results/frugality/COMMIT/runs/CELL/nanochat.json

What is the same: documents, which of them are held out, vocabulary size, tokens of a step, sequence length, width,
depth and heads. What is its own: the tokenizer, trained on the training text; the optimizer with the rates of its
scripts/base_train.py (scaled to the batch by its rule, times the factor of the sweep), warm-up, warm-down over the last
65 %, momentum and decay schedules; rows that begin with a document's beginning, filled with whole documents as far as
they fit. Its scaling of the decay to the number of tokens is left out: a clock does not tell them in advance.
In its favour: the whole budget is training time. Imports, tokenizer, compilation and evaluation, which our contestants
pay for out of theirs, are not counted.

Quality is the sum of -log2 p of every token of a held-out document, the token that ends it included, over its bytes.
Shapes: B rows, T positions, V vocabulary.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sobre.bench import child
from sobre.config.load import Layer, decode, to_dict
from sobre.config.recipe import Recipe
from sobre.errors import ConfigError
from sobre.ledger.prices import price
from sobre.plan.budget import parse_budget

RATES = {"embedding_lr": 0.3, "unembedding_lr": 0.008, "scalar_lr": 0.5, "matrix_lr": 0.02}
REFERENCE_BATCH = 2**19
"""Tokens of a step that those rates were tuned at; others scale them by the root."""
WARMUP_STEPS, WARMDOWN, FINAL = 40, 0.65, 0.05
DECAY = 0.28
BUFFER = 64
"""Documents among which the loader looks for one that fits."""


def run(clone: Path, recipe: Recipe, lr_scale: float, place: Path) -> dict[str, float]:
    """Train and score in a process of its own; the figures of the cell."""
    check(clone)
    settings = place / "nanochat.json"
    settings.write_text(json.dumps({"clone": str(clone), "lr_scale": lr_scale, "recipe": to_dict(recipe)}))
    command = [sys.executable, "-m", "sobre.bench.nanochat_run", str(settings)]
    _, peak_mib = child.run(command, place / "log.txt")
    found: dict[str, float] = json.loads((place / "figures.json").read_text(encoding="utf-8"))
    return found | {"peak memory MiB": peak_mib}


def check(clone: Path) -> None:
    """Raise ConfigError for a folder that is no clone of it, or where its tokenizer's packages are not installed."""
    if not (clone / "nanochat" / "gpt.py").is_file():
        raise ConfigError(f"nanochat={str(clone)!r} is no clone of nanochat: it has no nanochat/gpt.py")
    absent = [name for name in ("rustbpe", "tiktoken") if find_spec(name) is None]
    if absent:
        raise ConfigError(f"nanochat's tokenizer needs {' and '.join(absent)}: pip install {' '.join(absent)}")


def main(argv: Sequence[str]) -> int:
    """Train as the settings say, and leave figures.json beside them."""
    settings = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    recipe = decode(Recipe, [Layer("cell", settings["recipe"])])
    sys.path.insert(0, settings["clone"])

    import torch

    from sobre.runtime.device import calibrate, choose_threads
    from sobre.runtime.energy import EnergyMeter, assumed_watts

    choose_threads()
    os.environ["NANOCHAT_DTYPE"] = calibrate(torch.device("cpu")).to_dict()["dtype"]
    train_texts, held_out = texts(recipe)
    tokenizer = import_module("nanochat.tokenizer").RustBPETokenizer.train_from_iterator(
        _sample(train_texts, recipe.tokenizer.sample_bytes), recipe.tokenizer.vocab_size
    )
    torch.manual_seed(recipe.seed)
    model = build(recipe, tokenizer.get_vocab_size())
    meter = EnergyMeter(recipe.budget.price.watts or assumed_watts())
    wall_s, steps = train(model, recipe, settings["lr_scale"], tokenizer, train_texts)
    energy = meter.read(wall_s)
    scores = score(model, tokenizer, held_out, recipe.data.seq_len)
    tokens = steps * recipe.pretrain.batch_tokens
    found = {
        "wall_s": wall_s,
        "flops": tokens * float(model.estimate_flops()),
        "usd": price(recipe.budget.price).usd(wall_s),
        "model MiB": sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20,
        "pretrain steps": steps,
        "pretrain tokens": tokens,
        **{f"pretrain bits per byte of {source}": bits for source, bits in scores.items() if source != "all"},
        "pretrain bits per byte": scores["all"],
    }
    if energy.joules is not None:
        found["joules"] = energy.joules
    (Path(argv[0]).parent / "figures.json").write_text(json.dumps(found))
    return 0


def texts(recipe: Recipe) -> tuple[list[str], list[tuple[str, str]]]:
    """The training texts in an order of the seed, and (source, text) of the held-out documents that are scored."""
    import random

    from sobre.data.corpus import is_held_out
    from sobre.data.sources import read_documents
    from sobre.eval.bits import first_of_each

    documents = list(read_documents(recipe.data.paths, recipe.data))
    fraction = recipe.data.holdout_fraction
    train_texts = [document.text for document in documents if not is_held_out(document.text, fraction)]
    random.Random(recipe.seed).shuffle(train_texts)
    held_out = sorted((d for d in documents if is_held_out(d.text, fraction)), key=lambda document: document.source)
    return train_texts, [(d.source, d.text) for d in first_of_each(held_out, recipe.eval.bits_documents)]


def build(recipe: Recipe, vocab_size: int) -> Any:
    """Its model, as wide and deep as the recipe's and with as many heads, weights in float32."""
    gpt = import_module("nanochat.gpt")
    heads = recipe.model.attention.n_heads
    shape = gpt.GPTConfig(
        sequence_len=recipe.data.seq_len,
        vocab_size=vocab_size,
        n_layer=recipe.model.n_layers,
        n_head=heads,
        n_kv_head=heads,
        n_embd=recipe.model.d_model,
        window_pattern="L",
    )
    model = gpt.GPT(shape)
    model.init_weights()
    return model


def train(model: Any, recipe: Recipe, lr_scale: float, tokenizer: Any, train_texts: list[str]) -> tuple[float, int]:
    """Train for the seconds of the budget; (seconds, steps). The first step compiles, and its seconds do not count."""
    import torch

    budget = parse_budget(recipe.budget.amount, price_usd_per_h=price(recipe.budget.price).usd_per_h)
    if budget.kind != "seconds":
        raise ConfigError(f"nanochat runs against the clock; budget {budget.text!r} is not one of time")
    batch, micro = recipe.pretrain.batch_tokens, recipe.pretrain.micro_tokens
    length = recipe.data.seq_len
    scale = lr_scale * (batch / REFERENCE_BATCH) ** 0.5
    optimizer = model.setup_optimizer(**{name: lr * scale for name, lr in RATES.items()}, weight_decay=DECAY)
    rows = packed(train_texts, tokenizer, length)
    compiled = torch.compile(model, dynamic=False)  # a fifth less time for a step on two cores
    spent, steps = 0.0, 0
    while spent < budget.amount:
        began = time.perf_counter()
        progress = spent / budget.amount
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate(progress, steps)
            if group["kind"] == "muon":
                group["momentum"] = momentum(progress, steps)
                group["weight_decay"] = DECAY * 0.5 * (1 + math.cos(math.pi * progress))
        n_micro = max(1, batch // micro)
        for _ in range(n_micro):
            loss = compiled(*next_rows(rows, micro // length)) / n_micro
            loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        steps += 1
        spent += time.perf_counter() - began if steps > 1 else 0.0
    return spent, steps


def rate(progress: float, step: int) -> float:
    """Learning rate over its peak."""
    rise = min(1.0, (step + 1) / WARMUP_STEPS)
    left = min(1.0, (1.0 - progress) / WARMDOWN)
    return rise * (left + (1.0 - left) * FINAL)


def momentum(progress: float, step: int) -> float:
    """Of Muon: 0.85 to 0.97 over the first 400 steps, down to 0.90 over the warm-down."""
    if step < 400:
        return 0.85 + 0.12 * step / 400
    return 0.97 - 0.07 * max(0.0, 1.0 - (1.0 - progress) / WARMDOWN)


def packed(train_texts: list[str], tokenizer: Any, length: int) -> Iterator[list[int]]:
    """Rows of `length` + 1 tokens without end: each begins with a document; whole ones follow while one fits, then the
    shortest is cut."""
    start = tokenizer.get_bos_token_id()
    waiting: list[list[int]] = []
    place = 0
    while True:
        row: list[int] = []
        while (room := length + 1 - len(row)) > 0:
            while len(waiting) < BUFFER:
                waiting.append([start, *tokenizer.encode(train_texts[place % len(train_texts)])])
                place += 1
            fitting = [document for document in waiting if len(document) <= room]
            chosen = max(fitting, key=len) if fitting else min(waiting, key=len)
            waiting.remove(chosen)
            row += chosen[:room]
        yield row


def next_rows(rows: Iterator[list[int]], n_rows: int) -> Any:
    """inputs_BT and targets_BT."""
    import torch

    rows_BT1 = torch.tensor([next(rows) for _ in range(n_rows)])
    return rows_BT1[:, :-1].contiguous(), rows_BT1[:, 1:].contiguous()


def score(model: Any, tokenizer: Any, held_out: list[tuple[str, str]], length: int) -> dict[str, float]:
    """Bits per byte by source, "all" being the sum; windows and context as in eval/bits.py."""
    import torch
    import torch.nn.functional as F

    from sobre.eval.bits import windows

    start = tokenizer.get_bos_token_id()
    bits: dict[str, float] = {}
    n_bytes: dict[str, int] = {}
    with torch.inference_mode():
        for source, text in held_out:
            found = 0.0
            for piece in windows([*tokenizer.encode(text), start], 0, start_id=start, window=length, overlap=0.25):
                ids = list(piece.ids) + [start] * (2 - len(piece.ids))  # it reads two tokens at least
                logits_TV = model(torch.tensor([ids]))[0, : len(piece.ids)].float()
                nll_T = F.cross_entropy(logits_TV, torch.tensor(piece.targets), reduction="none")
                found += float(nll_T[len(piece.targets) - piece.n_scored :].sum()) / math.log(2)
            for name in (source, "all"):
                bits[name] = bits.get(name, 0.0) + found
                n_bytes[name] = n_bytes.get(name, 0) + len(text.encode())
    return {name: bits[name] / n_bytes[name] for name in bits}


def _sample(train_texts: list[str], limit: int) -> Iterator[str]:
    """The first texts, up to about `limit` bytes."""
    taken = 0
    for text in train_texts:
        if taken >= limit:
            return
        taken += len(text.encode())
        yield text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
