"""Whole steps of reinforcement learning in one layout and in one process: answers sampled, scored and learned from.

What is divided samples with a whole model that gets its weights; the trainer's own log-probabilities before the update
and those of the reference come from whole models, too.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.models.adapt import sharing_copy
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.parallel.config import ParallelConfig
from sobre.rl import rollout
from sobre.rl.config import CurriculumConfig, GRPOConfig, RLConfig
from sobre.rl.shared_engine import SharedEngine
from sobre.rl.source import RolloutSource
from sobre.runtime.processes import Processes
from sobre.tasks.config import TasksConfig
from sobre.tasks.format import Reward
from sobre.tasks.sampling import chat
from sobre.tokenizer.config import TokenizerConfig
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.divide import divide
from sobre.train.pieces import mine
from sobre.train.step import train_step

TASKS = TasksConfig(names=("sorting",), langs=("en",))
CFG = RLConfig(
    algorithm=GRPOConfig(kl=0.1),
    n_prompts=3,
    group_size=4,
    max_tokens=6,
    n_minibatches=2,
    max_correction=2.0,
    micro_tokens=300,
    curriculum=CurriculumConfig(difficulty=(1, 1)),
)
STEPS = 4
COMPARED = ("loss", "grad_norm", "reward", "kl_reference", "correction", "ratio", "logp_gap_mean", "routes_differ")


def compare(cfg: ModelConfig, layout: dict[str, Any], processes: Processes) -> dict[str, Any]:
    """The largest difference of what the log says of each step, and the log of the layout."""
    together = learn(cfg, layout, processes)
    if not processes.is_first:
        return {}
    alone = learn(cfg, {}, Processes())
    found = [abs(a[key] - b[key]) for a, b in zip(alone, together, strict=True) for key in COMPARED if key in a]
    return {
        "difference": max(found),
        "lines": together,
        "alike": [a.keys() == b.keys() for a, b in zip(alone, together, strict=True)],
    }


def learn(cfg: ModelConfig, layout: dict[str, Any], processes: Processes) -> list[dict[str, float]]:
    """What the log says of each step (float32)."""
    rollout.reward = letters
    sizes = ParallelConfig(**layout)
    tokenizer = Tokenizer.train(
        [message["content"] for i in range(50) for message in chat(TASKS, "t", i)], TokenizerConfig(vocab_size=300)
    )
    model = Decoder(replace(cfg, vocab_size=tokenizer.vocab_size, max_len=160))
    model.init_weights(5)
    sampler = sharing_copy(model) if sizes.is_divided else model
    division = divide(model, sizes, processes)
    fetch = None if sampler is model or division is None else partial(division.copy_into, sampler, model)
    engine = Engine(sampler, EngineConfig(max_batch=8, return_routes=True), run_seed=7)
    source = RolloutSource(
        SharedEngine(engine, processes, fetch=fetch),
        sampler,
        tokenizer,
        CFG,
        TASKS,
        seed=7,
        forward_flops=lambda batch: 1.0,
        reference=sharing_copy(sampler).eval(),
        gather=processes.gather,
    )
    names = dict(model.named_parameters())
    optimizer = Optimizer(names, roles(names), OptimConfig(warmup_steps=0), matrices=division)
    lines = []
    for step in range(STEPS):
        feed = source.feed(step)
        model.train()
        info = train_step(
            model,
            optimizer,
            [mine(batch, division) for batch in feed.batches],
            source.loss_fn,
            lr_scale=1.0,
            clip=1.0,
            rebalance=False,
            division=division,
        )
        said = {"loss": info.loss, "grad_norm": info.grad_norm, **info.stats, **feed.metrics}
        said |= source.updated(step + 1, info)
        lines.append({key: float(said[key]) for key in COMPARED if key in said})
    return lines


def letters(problem: object, text: str, finished: bool, **_weights: float) -> Reward:
    """An untrained model solves nothing; this tells its answers apart."""
    return Reward(0.0, 0.0, sum(letter.islower() for letter in text) / 6)
