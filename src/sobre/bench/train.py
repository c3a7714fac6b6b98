"""sobre bench train: one optimizer step, ours against transformers on the same weights, and against our dense twin.

What is compared before: logits, loss and gradients in float32. What is timed: bfloat16 compute over float32 masters,
fused AdamW, gradient clipping; on our side with the balance loss and the moving biases, which transformers leaves out.
Our router works in float32; under autocast transformers' own float32 product falls to bfloat16.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from sobre.bench import memory, nanochat, ours, peer
from sobre.bench.config import TrainBench
from sobre.bench.result import Result, checked
from sobre.bench.shapes import dense_twin
from sobre.bench.timing import Say, Work, as_json, interleave, medians, ratio
from sobre.config.load import to_dict
from sobre.models.checkpoint import save_model
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.plan.count import flops_per_token, params

LOGITS, LOSS, GRADIENT = 1e-4, 1e-5, 1e-3
"""Largest differences in float32: of a logit, of the loss, of a gradient relative to its norm."""
PAIRS = {
    "embed.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
}
"""Parameters whose gradients are compared: everything in between lies on their way."""
TARGETS = {
    ("sobre", "transformers"): 2.5,
    ("sobre compiled", "transformers compiled"): 1.8,
    ("sobre", "dense"): 0.80,
    ("sobre muon", "dense muon"): 0.70,
    ("sobre", "nanochat"): None,
}


def bench(cfg: TrainBench, say: Say) -> Result:
    """Check, then time."""
    torch.set_num_threads(cfg.threads)
    rows_BT1 = random_rows(cfg)
    with TemporaryDirectory() as folder:
        model = ours.build(cfg.model, cfg.seed)
        save_model(model, folder)
        needs_peer = cfg.compile or "transformers" in cfg.contestants
        check = compare(model, peer.load_peer(Path(folder)), rows_BT1) if needs_peer else []
        for line in check:
            say(f"{line['what']}: {line['value']:.2g} (at most {line['limit']:.0e})")
        works = contestants(cfg, Path(folder), rows_BT1)
        counts = models(cfg)
        if cfg.nanochat:
            works["nanochat"], counts["nanochat"] = nanochat.training_step(Path(cfg.nanochat), cfg, rows_BT1)
        losses: dict[str, float] = {}
        rounds = interleave(_keeping(works, losses), rounds=cfg.rounds, warmup=cfg.warmup, say=say)
        peaks = memory.peaks(cfg, Path(folder)) if cfg.memory else None
    units = dict.fromkeys(works, float(cfg.rows * cfg.seq_len))
    pairs = [(of, over, target) for (of, over), target in TARGETS.items() if of in works and over in works]
    found = medians(rounds, units, "tokens")
    _add_flops(found, counts)
    body = {
        "rounds": as_json(rounds),
        "medians": found,
        "ratios": [ratio(rounds, of, over, units=units, target=target) for of, over, target in pairs],
        "models": counts,
        "losses": losses,
        **({} if peaks is None else {"memory": peaks}),
    }
    return Result("train", "timing", to_dict(cfg), cfg.threads, check, body)


def random_rows(cfg: TrainBench) -> Tensor:
    """The batch that every contestant trains on: rows of T + 1 random tokens."""
    generator = torch.Generator().manual_seed(cfg.seed)
    return torch.randint(cfg.model.vocab_size, (cfg.rows, cfg.seq_len + 1), generator=generator)


def compare(model: Decoder, theirs: Any, rows_BT1: Tensor) -> list[dict[str, Any]]:
    """Logits, loss and gradients of both sides in float32 on two of the rows."""
    rows_BT1 = rows_BT1[:2]
    mine = ours.plain(model)
    with torch.no_grad():
        ids_BT = rows_BT1[:, :-1]
        step = ours.StepInput(ids_BT.flatten(), lengths=(ids_BT.shape[1],) * len(ids_BT))
        gap = (mine.logits(mine(step).hidden_ND) - theirs(ids_BT, use_cache=False).logits.flatten(0, 1)).abs().max()
    my_loss, their_loss = ours.causal_loss(mine, rows_BT1), peer.causal_loss(theirs, rows_BT1, bf16=False)
    my_loss.backward()
    their_loss.backward()
    places, their_places = dict(mine.named_parameters()), dict(theirs.named_parameters())
    worst = max(
        _relative(places[name].grad, their_places[their_name].grad)
        for name, their_name in PAIRS.items()
        if name in places and their_name in their_places
    )
    theirs.zero_grad(set_to_none=True)
    return [
        checked("largest difference of a logit, float32", float(gap), LOGITS),
        checked("difference of the loss, float32", abs(float(my_loss.detach() - their_loss.detach())), LOSS),
        checked("largest relative difference of a gradient, float32", worst, GRADIENT),
    ]


def contestants(cfg: TrainBench, folder: Path, rows_BT1: Tensor) -> dict[str, Work]:
    """The steps that take turns, by name."""
    shapes = {"sobre": cfg.model, "dense": dense_twin(cfg.model)}
    works: dict[str, Work] = {}
    for name in cfg.contestants:
        if name == "transformers":
            works[name] = peer.training_step(peer.load_peer(folder), rows_BT1, lr=cfg.lr, bf16=True)
        else:
            kind = "muon" if name.endswith("muon") else "adamw"
            works[name] = our_step(shapes[name.split()[0]], kind, cfg, rows_BT1)
    if cfg.compile:
        works["sobre compiled"] = our_step(cfg.model, "adamw", cfg, rows_BT1, compiled=True)
        theirs = peer.load_peer(folder)
        theirs.compile()
        works["transformers compiled"] = peer.training_step(theirs, rows_BT1, lr=cfg.lr, bf16=True)
    return works


def our_step(model_cfg: ModelConfig, kind: str, cfg: TrainBench, rows_BT1: Tensor, *, compiled: bool = False) -> Work:
    """Our step in bfloat16 over float32 masters."""
    model = ours.build(model_cfg, cfg.seed, torch.bfloat16)
    if compiled:
        model.compile()
    return ours.training_step(model, rows_BT1, optimizer=ours.make_optimizer(model, kind, cfg.lr))


def models(cfg: TrainBench) -> dict[str, Any]:
    """What the contestants are, with their counts."""
    shapes = {"sobre": cfg.model, "dense": dense_twin(cfg.model)}
    return {
        name: {
            "total": params(shape).total,
            "active": params(shape).active,
            "train_flops_per_token": flops_per_token(shape, cfg.seq_len).train,
            "config": to_dict(shape),
        }
        for name, shape in shapes.items()
    }


def _add_flops(found: dict[str, Any], counts: Mapping[str, Any]) -> None:
    """Model FLOPs per second, beside the tokens, of the shapes that our own count knows."""
    for name, median_ in found.items():
        shape = "dense" if name.startswith("dense") else "sobre"
        if name != "nanochat":
            median_["model_gflops_per_s"] = median_["per_s"] * counts[shape]["train_flops_per_token"] / 1e9


def _keeping(works: Mapping[str, Work], losses: dict[str, float]) -> dict[str, Work]:
    """The same steps, each leaving its last loss in `losses`: all have made equally many steps on equal rows."""

    def keeping(name: str, work: Work) -> Work:
        def run() -> None:
            losses[name] = float(work())  # type: ignore[arg-type]

        return run

    return {name: keeping(name, work) for name, work in works.items()}


def _relative(a: Tensor | None, b: Tensor | None) -> float:
    assert a is not None
    assert b is not None
    return float((a - b).norm() / b.norm())
