"""sobre plan: what would this budget buy, what would that model cost? No torch, no training: arithmetic.

sobre plan demo --budget 10m                      a recipe on a machine of stated speed
sobre plan --budget 20usd --chip h100             the best model that the budget buys on that chip
sobre plan --model deepseek-v3 --tokens 14.8T     a known model, or the path of a config.json
sobre plan --model qwen3-8b --serve --users 16    the same, to serve
sobre plan compare, validate, schedule, page      models side by side; the model of time against published runs
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from sobre.config.load import load
from sobre.config.recipe import Recipe, load_recipe
from sobre.errors import ConfigError
from sobre.plan import show
from sobre.plan.buy import buy, recipe
from sobre.plan.chips import chip
from sobre.plan.known import model
from sobre.plan.layout import SCHEDULES
from sobre.plan.outline import outline
from sobre.plan.plan import Machine
from sobre.plan.reasoning import DistillPlan, ReasoningPlan, rollout_seconds
from sobre.plan.runs import Run, published
from sobre.plan.schedule import Durations, bubble, order, simulate
from sobre.plan.serving import serve
from sobre.plan.solve import solve
from sobre.plan.train import TrainingPlan, train
from sobre.plan.units import amount, context
from sobre.plan.validate import validate
from sobre.schemas import VERSION


@dataclass(frozen=True)
class PlanOptions:
    """Flags of `sobre plan` that are no part of the recipe."""

    gflops: float = 300.0
    """Matrix products of the machine in its training dtype, in GFLOP/s; `sobre doctor` measures it."""
    dtype: str = "bfloat16"
    """What training computes in."""
    json: bool = False
    """One JSON document on standard output."""


@dataclass(frozen=True, kw_only=True)
class ChipOptions:
    """On what."""

    chip: str = "h100"
    """Name of a chip, such as h100 or rtx4090."""
    chips: int = 8
    """How many; with --serve, 0 takes the fewest that hold the model."""
    chips_file: str = ""
    """A file with chips of your own, in the form of plan/chips.toml."""
    json: bool = False
    """One JSON document on standard output."""


@dataclass(frozen=True, kw_only=True)
class BuyOptions(ChipOptions):
    """The best model that a budget buys on a chip."""

    budget: str
    """90s, 10m, 1h, 20usd, 2gpuh or 3e18flop."""
    chips: int = 1
    seq: str = "4k"
    """Length of the sequences."""
    write: str = ""
    """Write the recipe of the plan into this file."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ChipOptions):
    """What it takes to train a model."""

    model: str
    """A known model, or the path of a config.json."""
    tokens: str = ""
    """Trained tokens, such as 14.8T; 20 for each active parameter if not said (Chinchilla, arXiv 2203.15556)."""
    seq: str = "4k"
    """Length of the sequences."""
    batch: str = ""
    """Tokens of a step, such as 4M."""
    precision: str = ""
    """Of the matrix products: bf16 or fp8; bf16 if not said. A run that was published, asked for on its own chips with
    none of these said, is planned with its published batch, precision and layout."""
    tensor: int | None = None
    pipeline: int | None = None
    expert: int | None = None
    zero: int | None = None
    schedule: str | None = None
    recompute: str | None = None
    """Parts of the layout to keep; the others are chosen."""


@dataclass(frozen=True, kw_only=True)
class PageOptions(TrainOptions):
    """The same as a page with pictures."""

    out: str = "plan.html"
    """Where it is written."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ChipOptions):
    """What it takes to serve a model."""

    model: str
    """A known model, or the path of a config.json."""
    chips: int = 0
    context: str = "4k"
    """Tokens that a user's sequence holds, on average."""
    users: int = 1
    """Sequences decoded at once."""
    hits: float = 0.0
    """Share of the input that comes from the prefix cache."""
    weights: str = "bf16"
    cache: str = "bf16"
    input_per_day: str = ""
    output_per_day: str = ""
    """Tokens of a day, such as 608B: how many chips do they keep busy?"""


@dataclass(frozen=True, kw_only=True)
class ReasonOptions(ChipOptions):
    """What it takes to teach a model by reinforcement learning."""

    model: str
    """A known model, or the path of a config.json."""
    rollouts: int
    """Times that a batch of answers is sampled."""
    samples: int = 512
    """Answers of one rollout."""
    mean_tokens: str = "2k"
    """Tokens of an answer, on average."""
    max_tokens: str = "8k"
    """Where an answer is cut."""
    precision: str = "bf16"
    """Of weights and matrix products: bf16 or fp8."""


@dataclass(frozen=True, kw_only=True)
class DistillOptions(ChipOptions):
    """What it takes to teach a model by the answers of a larger one."""

    model: str
    """The student: a known model, or the path of a config.json."""
    teacher: str
    """Who answers."""
    samples: str = "800K"
    """Answers, such as R1's 800K (arXiv 2501.12948, 2.4)."""
    mean_tokens: str = "5k"
    """Tokens of an answer, on average."""
    epochs: int = 2
    """Passes of the student."""
    users: int = 256
    """Answers that a unit of the teacher samples at once."""
    weights: str = "bf16"
    """Format of the teacher's weights."""


@dataclass(frozen=True, kw_only=True)
class LayoutOptions(ChipOptions):
    """How a recipe's model would lie on chips: memory and time by part."""

    layout: str
    """Name or path of a recipe; its own sizes are taken, whatever a budget would choose."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ChipOptions):
    """Models side by side, trained on the same tokens and chips."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Known models, or paths of config.json."""
    tokens: str = "15T"
    chips: int = 2048
    precision: str = "bf16"


@dataclass(frozen=True, kw_only=True)
class ValidateOptions:
    """The model of time against published runs."""

    json: bool = False
    """One JSON document on standard output."""


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """A pipeline schedule, played out."""

    name: tyro.conf.Positional[str]
    """1f1b, interleaved, zb1p, dualpipe or dualpipev."""
    stages: int = 8
    """Chips of the pipeline."""
    micro: int = 16
    """Micro-batches of a step."""
    chunks: int = 2
    """Stages that a chip holds in the interleaved schedule."""


def main(argv: list[str]) -> int:
    """Parse, call, show."""
    wanted, options = read(argv)
    wanted(options)
    return 0


def read(argv: list[str]) -> tuple[Callable[[Any], None], Any]:
    """Which question is asked, and its flags."""
    first = argv[0] if argv else ""
    questions: dict[str, tuple[Callable[..., None], type]] = {
        "validate": (_validate, ValidateOptions),
        "compare": (_compare, CompareOptions),
        "schedule": (_schedule, ScheduleOptions),
        "page": (_page, PageOptions),
    }
    if first in questions:
        answer, schema = questions[first]
        return answer, load(schema, argv[1:], recipes=None, prog=f"sobre plan {first}")
    flags = {argument.partition("=")[0] for argument in argv}
    if first.startswith("--") and {"--budget", "--chip"} <= flags:
        return _buy, load(BuyOptions, argv, recipes=None, prog="sobre plan --budget")
    if first.startswith("--") and "--layout" in flags:
        return _layout, load(LayoutOptions, argv, recipes=None, prog="sobre plan --layout")
    if "--model" in flags:
        kinds: dict[str, tuple[Callable[..., None], type]] = {
            "--serve": (_serve, ServeOptions),
            "--reason": (_reason, ReasonOptions),
        }
        if "--teacher" in flags:
            return _distill, load(DistillOptions, argv, recipes=None, prog="sobre plan --teacher")
        for flag, (answer, schema) in kinds.items():
            if flag in argv:
                rest = [argument for argument in argv if argument != flag]
                return answer, load(schema, rest, recipes=None, prog=f"sobre plan {flag}")
        return _train, load(TrainOptions, argv, recipes=None, prog="sobre plan")
    return _recipe, load_recipe(argv, PlanOptions, prog="sobre plan")


def _recipe(asked: tuple[Recipe, PlanOptions]) -> None:
    recipe, options = asked
    machine = Machine(
        name=f"a machine of {options.gflops:g} GFLOP/s",
        dtype=options.dtype,
        peak_flops=options.gflops * 1e9,
    )
    plan = solve(
        recipe,
        machine,
        vocab_size=recipe.tokenizer.vocab_size,
        seq_len=recipe.data.seq_len,
        step_tokens={"pretrain": recipe.pretrain.batch_tokens, "sft": recipe.sft.batch_tokens},
        n_problems=recipe.eval.n_problems,
    )
    print(json.dumps(plan.to_dict()) if options.json else plan.table())


def _buy(options: BuyOptions) -> None:
    found = buy(
        options.budget,
        chip(options.chip, options.chips_file),
        _positive(options.chips),
        seq_len=context(options.seq, "--seq"),
    )
    if options.write:
        path = Path(options.write)
        if path.suffix != ".toml":
            raise ConfigError(f"--write {options.write}: a recipe's name ends in .toml")
        path.write_text(recipe(found, path.stem), encoding="utf-8")
        print(f"wrote {path}", file=sys.stderr)
    print(json.dumps(found.to_dict()) if options.json else found.table())


def _train(options: TrainOptions) -> None:
    plan, run = training_plan(options), as_published(options)
    print(json.dumps(plan.to_dict()) if options.json else show.training(plan))
    if run is not None and not options.json:
        print(f"note: batch, precision and layout as published ({run.source}), which took {run.hours:,.0f} hours")


def _page(options: PageOptions) -> None:
    from sobre.report.planning import page  # matplotlib takes a second to import

    path, plan = Path(options.out), training_plan(options)
    path.write_text(page(plan, validate()), encoding="utf-8")
    print(json.dumps(plan.to_dict()) if options.json else f"wrote {path}")


LAYOUT_FLAGS = ("tensor", "pipeline", "expert", "zero", "schedule", "recompute")


def as_published(options: TrainOptions) -> Run | None:
    """The published run that is asked for: its model on its chips, with nothing said of how it is to be trained."""
    if options.batch or options.precision or any(getattr(options, name) is not None for name in LAYOUT_FLAGS):
        return None
    asked = (options.model, options.chip, options.chips, context(options.seq, "--seq"))
    same = (run for run in published() if (run.name, run.chip, run.chips, run.seq_len) == asked)
    return next(same, None)


def training_plan(options: TrainOptions) -> TrainingPlan:
    """The plan that the flags ask for."""
    wanted, run = model(options.model), as_published(options)
    kept = {name: getattr(options, name) for name in LAYOUT_FLAGS if getattr(options, name) is not None}
    if run is not None:
        kept = run.layout | ({"recompute": run.recompute} if run.recompute else {})
    batch = amount(options.batch, "--batch") if options.batch else 0
    return train(
        wanted,
        chip(options.chip, options.chips_file),
        tokens=amount(options.tokens, "--tokens") if options.tokens else 20.0 * wanted.active,
        chips=_positive(options.chips),
        seq_len=context(options.seq, "--seq"),
        batch_tokens=batch if run is None else run.batch_tokens,
        precision=options.precision or ("bf16" if run is None else run.precision),
        fixed=kept,
    )


def _serve(options: ServeOptions) -> None:
    plan = serve(
        model(options.model),
        chip(options.chip, options.chips_file),
        chips=options.chips,
        users=options.users,
        context=context(options.context, "--context"),
        hits=options.hits,
        weights=options.weights,
        cache=options.cache,
    )
    given = (options.input_per_day, options.output_per_day)
    if any(given) and not all(given):
        raise ConfigError("--input-per-day and --output-per-day belong together")
    day = (amount(given[0], "--input-per-day"), amount(given[1], "--output-per-day")) if all(given) else None
    if options.json:
        print(json.dumps(plan.to_dict() | ({"chips_busy": plan.chips_for(*day)} if day else {})))
    else:
        print(show.serving(plan, day))


def _reason(options: ReasonOptions) -> None:
    learner, on, chips = model(options.model), chip(options.chip, options.chips_file), _positive(options.chips)
    mean, most = context(options.mean_tokens, "--mean-tokens"), context(options.max_tokens, "--max-tokens")
    if mean > most:
        raise ConfigError(f"--mean-tokens {options.mean_tokens} exceeds --max-tokens {options.max_tokens}")
    tokens = float(options.rollouts * options.samples * mean)
    update = train(learner, on, tokens=tokens, chips=chips, seq_len=mean, precision=options.precision)
    found = ReasoningPlan(
        plan=update,
        samples=options.samples,
        mean_tokens=mean,
        rollouts=options.rollouts,
        tokens=tokens,
        rollout_s=rollout_seconds(
            learner, on, chips=chips, samples=options.samples, mean_tokens=mean, max_tokens=most,
            weights=options.precision,
        ),
    )  # fmt: skip
    print(json.dumps(found.to_dict()) if options.json else show.reasoning(found))


def _distill(options: DistillOptions) -> None:
    on, chips = chip(options.chip, options.chips_file), _positive(options.chips)
    samples, mean = amount(options.samples, "--samples"), context(options.mean_tokens, "--mean-tokens")
    found = DistillPlan(
        plan=train(model(options.model), on, tokens=samples * mean * options.epochs, chips=chips, seq_len=mean),
        teacher=serve(model(options.teacher), on, users=options.users, context=mean, weights=options.weights),
        samples=samples,
        mean_tokens=mean,
    )
    print(json.dumps(found.to_dict()) if options.json else show.distillation(found))


def _layout(options: LayoutOptions) -> None:
    asked, _ = load_recipe([options.layout], PlanOptions)
    cfg = replace(asked.model, vocab_size=asked.model.vocab_size or asked.tokenizer.vocab_size)
    drawn = outline(cfg, asked.name)
    plan = train(
        drawn,
        chip(options.chip, options.chips_file),
        tokens=asked.budget.tokens_per_active * drawn.active,
        chips=_positive(options.chips),
        seq_len=asked.data.seq_len,
        batch_tokens=max(asked.pretrain.batch_tokens, asked.data.seq_len * options.chips),
    )
    print(json.dumps(plan.to_dict()) if options.json else show.training(plan))


def _compare(options: CompareOptions) -> None:
    if len(options.models) < 2:
        raise ConfigError("compare needs two models or more, such as: sobre plan compare deepseek-v3 llama-3.1-405b")
    on, tokens = chip(options.chip, options.chips_file), amount(options.tokens, "--tokens")
    plans = [
        train(model(name), on, tokens=tokens, chips=_positive(options.chips), precision=options.precision)
        for name in options.models
    ]
    document = {"schema": VERSION, "kind": "comparison", "models": [plan.to_dict() for plan in plans]}
    print(json.dumps(document) if options.json else show.comparison(plans))


def _validate(options: ValidateOptions) -> None:
    found = validate()
    print(json.dumps(found.to_dict()) if options.json else show.validation(found))


def _schedule(options: ScheduleOptions) -> None:
    name = next((known for known in SCHEDULES if known == options.name), None)
    if name is None:
        raise ConfigError(f"no schedule {options.name!r}; there are {', '.join(SCHEDULES)}")
    per_chip = {"interleaved": options.chunks, "dualpipev": 2}.get(name, 1)
    unit = Durations()
    placed = simulate(
        order(name, options.stages, options.micro, options.chunks), options.stages * per_chip, unit, per_chip
    )
    print(show.timeline(placed))
    print(
        f"idle {bubble(name, options.stages, unit, options.chunks):g} of {max(p.end for p in placed):g}, in closed form"
    )


def _positive(chips: int) -> int:
    if chips < 1:
        raise ConfigError(f"--chips {chips} must be 1 or more")
    return chips
