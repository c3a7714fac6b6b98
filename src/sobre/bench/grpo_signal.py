"""How much of a GRPO step is signal? What a model's own answers can teach it, before a run is paid for.

    python -m sobre.bench.grpo_signal MODEL --tasks arithmetic --difficulty 2 --batches 14

Several batches of answers, all by the same weights, each on problems of its own, give as many gradients of the expected
reward. What two of them share is signal, and the rest is chance: |E g|^2 is the mean of g_i . g_j over i != j, and the
noise of a batch the mean of |g_i|^2 less that (McCandlish et al., arXiv 1812.06162, 2.2 and appendix A). An optimizer
that normalises its steps walks as far on noise as on signal, so the share of signal says which rate it can bear.

A signal within twice its error of 0 is not told from none.

Shapes: M batches, P parameters.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sobre.bench.climbers import Course
from sobre.bench.config import ClimbBench
from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.errors import ConfigError, RunError
from sobre.models.checkpoint import load_model
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.signal import shared
from sobre.rl.batch import microbatches, to_batch, to_samples
from sobre.rl.losses import policy_loss
from sobre.rl.rollout import collect
from sobre.tasks.base import Problem

RATE = 1e-4
"""Learning rate of AdamW for which the gain of a step is told; the gain is in proportion."""


def signal(gradients_MP: Tensor) -> dict[str, float]:
    """What gradients of one expectation share. "gain": what a step against one's own noise gains to first order, at
    `RATE`: AdamW's, in its steady state, is RATE * E g / rms(g) for each number. Errors are the jackknife's."""
    if len(gradients_MP) < 3:
        raise ConfigError(f"{len(gradients_MP)} batches say nothing of chance; at least 3")
    rms_P = gradients_MP.square().mean(0).sqrt().clamp_min(1e-12)
    products_MM = gradients_MP @ gradients_MP.T
    gains_MM = RATE * (gradients_MP / rms_P) @ gradients_MP.T
    lengths_M = products_MM.diagonal().sqrt().clamp_min(1e-12)
    common, common_error = _between(products_MM)
    gain, gain_error = _between(gains_MM)
    cosine, _ = _between(products_MM / (lengths_M[:, None] * lengths_M))
    return {
        "signal": common,
        "signal error": common_error,
        "noise": float(products_MM.diagonal().mean()) - common,
        "cosine of two batches": cosine,
        "gain": gain,
        "gain error": gain_error,
    }


def remembered(gradients_MP: Tensor) -> float | None:
    """That cosine as a run would tell it, having made these steps one after the other (`optim.signal`)."""
    betas = OptimConfig().betas
    mean_P, square_P = torch.zeros_like(gradients_MP[0]), torch.zeros_like(gradients_MP[0])
    for gradient_P in gradients_MP / gradients_MP.norm(dim=1, keepdim=True).clamp_min(1e-12):  # as clipping leaves them
        mean_P.lerp_(gradient_P, 1 - betas[0])
        square_P.lerp_(gradient_P.square(), 1 - betas[1])
    return shared([mean_P], [square_P], [torch.tensor(float(len(gradients_MP)))], betas)


def _between(values_MM: Tensor) -> tuple[float, float]:
    """Mean over pairs of different batches, and its jackknife error over batches."""
    n = len(values_MM)
    values_MM = values_MM.double()
    diagonal_M = values_MM.diagonal()
    total = values_MM.sum() - diagonal_M.sum()
    without_M = total - values_MM.sum(0) - values_MM.sum(1) + 2 * diagonal_M
    left_out_M = without_M / ((n - 1) * (n - 2))
    error = ((left_out_M - left_out_M.mean()).square().sum() * (n - 1) / n).sqrt()
    return float(total / (n * (n - 1))), float(error)


def measure(course: Course, model: Decoder, n_batches: int) -> dict[str, Any]:
    """Roll out and differentiate `n_batches` steps of the course by the same weights."""
    rl = course.rl
    sizes = EngineConfig(max_batch=rl.n_prompts * rl.group_size, return_routes=model.cfg.ffn.kind == "moe")
    engine = Engine(model.for_decoding(), sizes, run_seed=course.seed)
    loss_fn = policy_loss(rl)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients: list[Tensor] = []
    right: list[float] = []
    kept: list[int] = []
    for step in range(n_batches):

        def draw(round_: int, n: int, step: int = step) -> list[Problem]:
            return course.problems(step)

        found = collect(engine, course.tokenizer, draw, rl, course.tasks, seed=step)
        right += [group.pass_rate for group in found.all]
        kept.append(len(found.groups))
        model.train()
        for parameter in parameters:
            parameter.grad = None
        # a group's mean holds the answer itself: the factor makes reward less mean an unbiased advantage
        scale = -rl.group_size / (rl.group_size - 1) / (rl.n_prompts * rl.group_size)
        for part in microbatches(to_samples(found.groups, rl), rl.micro_tokens):
            batch = to_batch(part, replay=False).to(model.device)
            (scale * loss_fn(model, model(batch.step), batch).sum).backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        gradients.append(torch.cat([grad.flatten().float() for grad in grads]))
    gradients_MP = torch.stack(gradients)
    if not gradients_MP.any():
        raise RunError(
            f"in {n_batches} batches no group of answers earned differently ({sum(right) / len(right):.1%} right):"
            " nothing to learn from; other --tasks, another --difficulty, a larger --group-size, or a cold start"
        )
    told = signal(gradients_MP)
    even = told["noise"] / told["signal"] * rl.n_prompts if told["signal"] > 0 else None
    return {
        "right, sampled": sum(right) / len(right),
        "groups that differ": sum(kept) / len(kept),
        **told,
        "that cosine by AdamW's memory": remembered(gradients_MP),
        "problems for as much signal as noise": even,
    }


def main() -> None:
    ask = argparse.ArgumentParser(prog="sobre.bench.grpo_signal", description=(__doc__ or "").split("\n")[0])
    ask.add_argument("model", type=Path)
    ask.add_argument("--batches", type=int, default=14)
    ask.add_argument("--tasks", nargs="+", default=list(ClimbBench().tasks))
    ask.add_argument("--difficulty", type=int, default=ClimbBench().difficulty)
    ask.add_argument("--prompts", type=int, default=ClimbBench().prompts)
    ask.add_argument("--group-size", type=int, default=ClimbBench().group_size)
    ask.add_argument("--new", type=int, default=ClimbBench().new)
    ask.add_argument("--problems", type=int, default=200)
    told = vars(ask.parse_args())
    start, n_batches = told.pop("model"), told.pop("batches")
    cfg = replace(ClimbBench(), **{**told, "tasks": tuple(told["tasks"]), "chats": ()})
    course = Course(cfg, start, 0)
    model = load_model(start, compute_dtype=torch.bfloat16)
    found = {"model": str(start), "right, greedy": course.score(model), **measure(course, model, n_batches)}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
