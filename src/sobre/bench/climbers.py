"""What both sides of `bench climb` share, the course and its clock, and our side: GRPO as `sobre rl` runs it.

The course is fixed by the seed alone: problem i of step n is the same for both, whatever they answered before. Hence no
curriculum and no refill of flat groups, which both follow the answers.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from sobre.bench.config import ClimbBench
from sobre.bench.ours import make_optimizer
from sobre.config.load import decode, read_recipe
from sobre.config.recipe import Recipe
from sobre.engine.config import EngineConfig
from sobre.engine.engine import Engine
from sobre.errors import RunError
from sobre.eval.config import EvalConfig
from sobre.eval.score import evaluate
from sobre.models.checkpoint import load_model
from sobre.models.decoder import Decoder
from sobre.rl import curriculum
from sobre.rl.config import CurriculumConfig, GRPOConfig, RLConfig
from sobre.rl.rollout import give_for
from sobre.rl.source import RolloutSource
from sobre.tasks.base import Problem
from sobre.tasks.config import HARDEST, TasksConfig
from sobre.tasks.judging import Asked, Fault, check, judge
from sobre.tasks.sampling import test_set
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.step import StepInfo, train_step

BEFORE = ("pretrain", "sft")
"""Stages of a recipe that come before its reinforcement learning."""
Point = tuple[int, float, float]
"""Optimizer steps, seconds of the side's own work, share of the held-out problems that is right."""


def beginning(cfg: ClimbBench) -> Recipe:
    """What makes the model that both sides start from: a recipe up to its reinforcement learning, of the course's tasks
    and of those that it reads in chats."""
    recipe = decode(Recipe, [read_recipe(cfg.recipe)])
    levels = (cfg.difficulty, min(cfg.difficulty + 1, HARDEST))
    return replace(
        recipe,
        name="climb-start",
        stages=tuple(stage for stage in recipe.stages if stage in BEFORE),
        budget=replace(recipe.budget, amount=cfg.start, choose_model=False),
        model=replace(recipe.model, d_model=cfg.width, n_layers=cfg.layers),
        tasks=replace(recipe.tasks, names=cfg.tasks, langs=("en",), difficulty=levels, test_difficulty=cfg.difficulty),
        text=replace(
            recipe.text,
            names=(*cfg.tasks, *cfg.chats),
            langs=("en",),
            difficulty=levels,
            chat_names=cfg.chats,
            chat_share=cfg.chat_share,
        ),
        eval=replace(recipe.eval, n_problems=cfg.problems, max_new_tokens=cfg.new, k=0, ngram_order=0),
    )


@dataclass(frozen=True)
class Course:
    """The problems of one seed, how they are judged, and the folder that both sides start from."""

    cfg: ClimbBench
    start: Path
    seed: int

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.start)

    @cached_property
    def tasks(self) -> TasksConfig:
        """What is asked, and what it earns by the recipe of the start."""
        return replace(beginning(self.cfg).tasks, difficulty=(self.cfg.difficulty, self.cfg.difficulty))

    @cached_property
    def rl(self) -> RLConfig:
        """GRPO's step on the course."""
        level = self.cfg.difficulty
        return RLConfig(
            algorithm=GRPOConfig(refill_rounds=0),
            n_prompts=self.cfg.prompts,
            group_size=self.cfg.group_size,
            max_tokens=self.cfg.new,
            curriculum=CurriculumConfig(enabled=False, difficulty=(level, level)),
            give_up_after=0,
        )

    @cached_property
    def held_out(self) -> list[Problem]:
        return test_set(self.cfg.problems, self.tasks)

    def problems(self, step: int) -> list[Problem]:
        """What a step asks: what `RolloutSource` draws, where no curriculum follows the answers."""
        names, langs, key = self.tasks.names, self.tasks.langs, f"{self.seed}/{step}/0"
        return curriculum.draw({}, names, langs, self.rl.curriculum, self.cfg.prompts, key)

    def rewards(self, asked: Sequence[Asked]) -> list[float | None]:
        """What answers earn, as in a rollout; None without a verdict."""
        found = judge(asked, give_for(self.tasks), limit_s=self.tasks.judge_s)
        check([each.why for each in found if isinstance(each, Fault)], len(found))
        return [None if isinstance(each, Fault) else each.total for each in found]

    def score(self, model: Decoder) -> float:
        """Share of the held-out problems that the model answers right, greedily, in float32."""
        model.eval()
        engine = Engine(model.computing_in(torch.float32), EngineConfig(max_batch=len(self.held_out)))
        how = EvalConfig(n_problems=len(self.held_out), max_new_tokens=self.cfg.new, k=0)
        return evaluate(engine, self.tokenizer, self.held_out, how, seed=0, judge_s=self.tasks.judge_s).pass_at_1


@dataclass
class Ascent:
    """The clock of one contestant: its seconds, its curve, and when it is over. Examinations cost it nothing."""

    score: Callable[[Decoder], float]
    goal: float
    every: int
    limit_s: float
    tell: Callable[[Point], None]
    steps: int = 0
    seconds: float = 0.0
    curve: list[Point] = field(default_factory=list)

    @property
    def reached(self) -> bool:
        return self.curve[-1][2] >= self.goal

    @property
    def is_over(self) -> bool:
        """No step begins any more."""
        return self.reached or self.seconds >= self.limit_s

    def begin(self, model: Decoder) -> None:
        """Examine the start. Raises RunError where nothing is left to climb."""
        self._examine(model)
        if self.reached:
            raise RunError(
                f"the start answers {self.curve[0][2]:.0%} right, and the goal is {self.goal:.0%}: there is nothing to"
                " climb; a smaller --start or a higher --difficulty fits"
            )

    def stepped(self, took_s: float, model: Callable[[], Decoder]) -> bool:
        """Count a step; examine `model()` where it is time. Returns whether it is over."""
        self.steps += 1
        self.seconds += took_s
        if self.steps % self.every == 0 or self.seconds >= self.limit_s:
            self._examine(model())
        return self.is_over

    def _examine(self, model: Decoder) -> None:
        self.curve.append((self.steps, self.seconds, self.score(model)))
        self.tell(self.curve[-1])


def climb_ours(course: Course, ascent: Ascent, lr: float) -> None:
    """Rollouts, rewards and the step of `sobre rl`, on one process, with AdamW at one rate."""
    cfg = course.cfg
    model = load_model(course.start, compute_dtype=getattr(torch, cfg.dtype))
    ascent.begin(model)
    sizes = EngineConfig(max_batch=cfg.prompts * cfg.group_size, return_routes=model.cfg.ffn.kind == "moe")
    source = RolloutSource(
        engine=Engine(model.for_decoding(), sizes, run_seed=course.seed),
        model=model,
        tokenizer=course.tokenizer,
        cfg=course.rl,
        tasks=course.tasks,
        seed=course.seed,
        forward_flops=lambda batch: 0.0,
    )
    optimizer = make_optimizer(model, "adamw", lr)
    while not ascent.is_over:
        began = time.perf_counter()
        feed = source.feed(ascent.steps)
        model.train()
        info = StepInfo(loss=0.0, n_tokens=0, n_trained=0.0, grad_norm=0.0)
        if feed.batches:
            info = train_step(
                model, optimizer, feed.batches, source.loss_fn, lr_scale=1.0, clip=course.rl.clip, rebalance=False
            )
        source.updated(ascent.steps + 1, info)
        ascent.stepped(time.perf_counter() - began, lambda: model)
