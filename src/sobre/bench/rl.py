"""sobre bench rl: a GRPO step against TRL's, on the same weights, prompts, token counts, optimizer and loss terms.

A step: X prompts are continued Y times each, every completion to its full length; a reward is taken from the token ids
by one function; advantages r - mean; one pass for log-probabilities, with gradient; the token-level clipped loss;
clipping; fused AdamW. TRL's own `train` runs, and our step takes its turn at the end of each of its steps. What is
compared before: log-probabilities, and gradients of one set of completions, in float32.

Shapes: X prompts, Y completions each.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sobre.bench import ours, trl_peer
from sobre.bench.config import RLBench
from sobre.bench.result import Result, checked
from sobre.bench.timing import Round, Say, as_json, medians, ratio, time_once
from sobre.config.load import to_dict
from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.engine.request import Request, SamplingParams
from sobre.models.checkpoint import load_model, save_model
from sobre.models.decoder import Decoder
from sobre.optim.optimizer import Optimizer
from sobre.rl.batch import microbatches, to_batch, to_samples
from sobre.rl.config import GRPOConfig, RLConfig
from sobre.rl.losses import policy_loss
from sobre.rl.mismatch import Mismatch
from sobre.rl.types import Group, Rollout
from sobre.tasks.base import Problem
from sobre.tasks.format import Reward
from sobre.train.step import train_step

LOGP, GRADIENT = 1e-4, 1e-3
"""Largest differences in float32: of a log-probability, of a gradient relative to its norm."""
TARGET = 4.0
NOBODY = Problem(task="bench", lang="en", difficulty=1, prompt="", answer="", key="bench", data={})


def reward_of(completion: Sequence[int]) -> float:
    """Share of even tokens: differs within a group, costs nothing."""
    return sum(token % 2 == 0 for token in completion) / len(completion)


@dataclass
class Ours:
    """Our GRPO step, as a run of `sobre run` takes it, on fixed prompts."""

    cfg: RLBench
    model: Decoder
    prompts: list[list[int]]
    step: int = 0
    mismatch: Mismatch = field(default_factory=Mismatch)

    def __post_init__(self) -> None:
        self.rl = RLConfig(
            algorithm=GRPOConfig(refill_rounds=0),
            n_prompts=self.cfg.prompts,
            group_size=self.cfg.group_size,
            max_tokens=self.cfg.new,
        )
        room = self.cfg.prompt + self.cfg.new
        sizes = EngineConfig(max_batch=self.cfg.prompts * self.cfg.group_size, max_len=room, return_routes=True)
        self.engine = Engine(self.model.for_decoding(), sizes)
        self.optimizer: Optimizer = ours.make_optimizer(self.model, "adamw", self.cfg.lr)
        self.loss_fn = policy_loss(self.rl, self.mismatch.see)

    def __call__(self) -> None:
        groups = self.roll_out()
        parts = microbatches(to_samples(groups, self.rl), self.rl.micro_tokens)
        batches = [to_batch(part, replay=False) for part in parts]
        self.model.train()
        train_step(self.model, self.optimizer, batches, self.loss_fn, lr_scale=1.0, clip=1.0, rebalance=False)
        self.engine.weights_changed()
        self.step += 1

    def roll_out(self) -> list[Group]:
        """Sample and score the completions of one step."""
        per_step = len(self.prompts) * self.cfg.group_size
        requests = [
            Request(str(i), tuple(prompt), SamplingParams(max_tokens=self.cfg.new, seed=self.step * per_step + i))
            for i, prompt in enumerate(p for p in self.prompts for _ in range(self.cfg.group_size))
        ]
        rollouts = [
            Rollout(
                prompt_ids=request.prompt_ids,
                response_ids=tuple(output.token_ids),
                logprobs=tuple(output.logprobs),
                text="",
                finished=True,
                reward=Reward(reward_of(output.token_ids), 0.0, reward_of(output.token_ids)),
                routes_LTA=output.routes_LTA,
            )
            for request, output in zip(requests, self.engine.generate(requests), strict=True)
        ]
        size = self.cfg.group_size
        return [Group(NOBODY, tuple(rollouts[i : i + size])) for i in range(0, len(rollouts), size)]


def bench(cfg: RLBench, say: Say) -> Result:
    """Check, then time against each of TRL's modes in turn."""
    trl_peer.require()
    torch.set_num_threads(cfg.threads)
    prompts = random_prompts(cfg)
    with TemporaryDirectory() as place:
        folder = Path(place)
        save_model(
            ours.build(cfg.model, cfg.seed), folder
        )  # no token ids: an embedding with a pad id gets no gradient for that id
        check = compare(cfg, folder, prompts)
        for line in check:
            say(f"{line['what']}: {line['value']:.2g} (at most {line['limit']:.0e})")
        rounds: list[Round] = []
        for dtype in cfg.peer_dtypes:
            rounds = _beside(rounds, against(cfg, dtype, folder, prompts, say))
    units = dict.fromkeys(rounds[0], float(cfg.prompts * cfg.group_size))
    found = medians(rounds, units, "samples")
    ratios = [ratio(rounds, f"sobre beside {d}", f"trl {d}", units=units) for d in cfg.peer_dtypes]
    fastest = max(cfg.peer_dtypes, key=lambda d: found[f"trl {d}"]["per_s"])
    next(r for r in ratios if r["over"] == f"trl {fastest}")["target"] = TARGET
    body = {"rounds": as_json(rounds), "medians": found, "ratios": ratios}
    return Result("rl", "timing", to_dict(cfg), cfg.threads, check, body)


def against(cfg: RLBench, dtype: str, folder: Path, prompts: list[list[int]], say: Say) -> list[Round]:
    """TRL's trainer in one dtype; our step takes its turn after each of its steps."""
    step = our_side(cfg, folder, prompts)
    rounds: list[Round] = []

    def our_turn(theirs: trl_peer.Timing) -> bool:
        mine = time_once(step)
        if step.step > cfg.warmup:
            rounds.append({f"sobre beside {dtype}": mine, f"trl {dtype}": theirs})
            say(f"round {len(rounds)} of {cfg.rounds}: sobre {mine.wall_s:.2f} s, trl {dtype} {theirs.wall_s:.2f} s")
        return False

    trainer = trl_peer.make_trainer(cfg, folder, prompts, reward_of, bf16=dtype == "bfloat16")
    trl_peer.train(trainer, our_turn)
    return rounds


def our_side(cfg: RLBench, folder: Path, prompts: list[list[int]]) -> Ours:
    return Ours(cfg, load_model(folder, compute_dtype=getattr(torch, cfg.dtype)), prompts)


def random_prompts(cfg: RLBench) -> list[list[int]]:
    """Prompts of random tokens; 0 is left out, it stands for padding on their side."""
    rng = random.Random(f"{cfg.seed}/prompts")
    return [[rng.randrange(1, cfg.model.vocab_size) for _ in range(cfg.prompt)] for _ in range(cfg.prompts)]


def compare(cfg: RLBench, folder: Path, prompts: list[list[int]]) -> list[dict[str, object]]:
    """The same completions through both losses, in float32."""
    side = Ours(cfg, load_model(folder), prompts)
    groups = side.roll_out()
    samples = to_samples(groups, side.rl)
    batch = to_batch(samples, replay=False)
    seen: list[torch.Tensor] = []
    loss_fn = policy_loss(side.rl, lambda logp_N, streams: seen.append(logp_N))
    loss = loss_fn(side.model, side.model(batch.step), batch)
    (loss.sum / batch.weights_N.sum()).backward()
    trainer = trl_peer.make_trainer(cfg, folder, prompts, reward_of, bf16=False)
    their_logp_YT, their_gradients = trl_peer.loss_and_gradients(trainer, samples)
    gap = (seen[0].view_as(their_logp_YT) - their_logp_YT).abs().max()
    places = dict(side.model.named_parameters())
    relative = [_relative(places[ours_].grad, grad) for ours_, grad in their_gradients.items() if ours_ in places]
    return [
        checked("largest difference of a log-probability, float32", float(gap), LOGP),
        checked("largest relative difference of a gradient, float32", max(relative), GRADIENT),
    ]


def _relative(mine: torch.Tensor | None, theirs: torch.Tensor) -> float:
    assert mine is not None
    return float((mine - theirs).norm() / theirs.norm())


def _beside(left: list[Round], right: list[Round]) -> list[Round]:
    """The n-th rounds of two series as one."""
    return [a | b for a, b in zip(left, right, strict=True)] if left else right
