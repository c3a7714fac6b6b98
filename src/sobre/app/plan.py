"""sobre plan: what would this budget buy, what would that model cost? No torch, no training: arithmetic.

Every question is one class of flags (app/plan_options.py) and one function here. A function imports what its question
needs and no more: an answer comes in under a second, and most of that is imports.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sobre.errors import ConfigError
from sobre.schemas import VERSION

if TYPE_CHECKING:
    from sobre.app.plan_options import (
        BuyOptions,
        CardOptions,
        CompareOptions,
        DistillOptions,
        EnginesOptions,
        LayoutOptions,
        PageOptions,
        PlanOptions,
        ReasonOptions,
        ScheduleOptions,
        ServeOptions,
        TrainOptions,
        ValidateOptions,
    )
    from sobre.config.recipe import Recipe
    from sobre.models.config import ModelConfig
    from sobre.plan.chips import Chip
    from sobre.plan.plan import Machine, Plan
    from sobre.plan.runs import Run
    from sobre.plan.train import TrainingPlan


QUESTIONS = """sobre plan: what would this budget buy, what would that model cost? Arithmetic: nothing is trained.

  sobre plan --budget 20usd --chip h100         the best model that the budget buys; --write mine.toml makes it a recipe
  sobre plan demo --budget 10m                  a recipe, on this machine as `sobre doctor` measured it
  sobre plan --model deepseek-v3 --chip h800    what it takes to train a known model, or the path of a config.json
  sobre plan --model qwen3-8b --serve           what it takes to serve it, and what a million tokens cost
  sobre plan --model qwen3-8b --reason --rollouts 100        to teach it by reinforcement learning
  sobre plan --model qwen3-0.6b --one-card --chip rtx4090    the same with sampler and trainer on one card: does it fit?
  sobre plan --model qwen3-8b --teacher deepseek-r1          to teach it by a larger model's answers
  sobre plan --layout demo                      how a recipe's model would lie on chips
  sobre plan compare deepseek-v3 llama-3.1-405b              models side by side
  sobre plan engines demo                       who else could run a model of this shape
  sobre plan validate                           predicted against published
  sobre plan schedule dualpipe                  a pipeline schedule, played out
  sobre plan trace --model deepseek-v3 --chip h800 --chips 2048    a step as its trace would be
  sobre plan page --model deepseek-v3           the same as a page with pictures

--help behind any of them shows its flags; --json answers with one document."""


def main(argv: list[str]) -> int:
    """Parse, call, show."""
    if argv and argv[0] in ("-h", "--help"):
        print(QUESTIONS)
        return 0
    wanted, options = read(argv)
    wanted(options)
    return 0


def read(argv: list[str]) -> tuple[Callable[[Any], None], Any]:
    """Which question is asked, and its flags."""
    from sobre.app import plan_options as ask
    from sobre.config.load import load

    first = argv[0] if argv else ""
    questions: dict[str, tuple[Callable[..., None], type]] = {
        "validate": (_validate, ask.ValidateOptions),
        "compare": (_compare, ask.CompareOptions),
        "engines": (_engines, ask.EnginesOptions),
        "schedule": (_schedule, ask.ScheduleOptions),
        "trace": (_trace, ask.TrainOptions),
        "page": (_page, ask.PageOptions),
    }
    if first in questions:
        answer, schema = questions[first]
        return answer, load(schema, argv[1:], recipes=None, prog=f"sobre plan {first}")
    flags = {argument.partition("=")[0] for argument in argv}
    if first.startswith("--") and {"--budget", "--chip"} <= flags:
        return _buy, load(ask.BuyOptions, argv, recipes=None, prog="sobre plan --budget")
    if first.startswith("--") and "--layout" in flags:
        return _layout, load(ask.LayoutOptions, argv, recipes=None, prog="sobre plan --layout")
    if "--model" in flags:
        kinds: dict[str, tuple[Callable[..., None], type]] = {
            "--serve": (_serve, ask.ServeOptions),
            "--reason": (_reason, ask.ReasonOptions),
            "--one-card": (_one_card, ask.CardOptions),
        }
        if "--teacher" in flags:
            return _distill, load(ask.DistillOptions, argv, recipes=None, prog="sobre plan --teacher")
        for flag, (answer, schema) in kinds.items():
            if flag in argv:
                rest = [argument for argument in argv if argument != flag]
                return answer, load(schema, rest, recipes=None, prog=f"sobre plan {flag}")
        return _train, load(ask.TrainOptions, argv, recipes=None, prog="sobre plan")
    from sobre.config.recipe import load_recipe  # every section of a recipe, which the other questions do not need

    return _recipe, load_recipe(argv, ask.PlanOptions, prog="sobre plan")


def _recipe(asked: "tuple[Recipe, PlanOptions]") -> None:
    recipe, options = asked
    plan = _solve(recipe, options)
    print(json.dumps(plan.to_dict()) if options.json else plan.table())


def _solve(recipe: "Recipe", options: "PlanOptions") -> "Plan":
    from sobre.app.works import step_tokens, works
    from sobre.plan.solve import solve

    return solve(
        recipe,
        stated_machine(options.gflops),
        vocab_size=recipe.tokenizer.vocab_size,
        seq_len=recipe.data.seq_len,
        step_tokens=step_tokens(recipe),
        works=works(recipe, replace(recipe.model, vocab_size=recipe.tokenizer.vocab_size)),
        n_problems=recipe.eval.n_problems,
    )


def _engines(options: "EnginesOptions") -> None:
    from sobre.plan.engines import to_dict, verdicts

    if not options.models:
        raise ConfigError("engines needs a recipe, a known model or a folder: sobre plan engines mine.toml")
    found = {name: verdicts(*_shape(name)) for name in options.models}
    if options.json:
        print(json.dumps(to_dict(found)))
        return
    for name, said in found.items():
        print("\n".join([name, *(f"  {line}" for verdict in said for line in verdict.lines())]))


def _shape(name: str) -> "tuple[ModelConfig, str]":
    """Of a recipe, the model that its budget would choose; of anything else, the config that lies there."""
    from sobre.app.plan_options import PlanOptions
    from sobre.config.load import recipe_names
    from sobre.plan.known import shape

    if not name.endswith(".toml") and (name not in recipe_names() or Path(name).is_dir()):
        return shape(name)
    from sobre.config.recipe import load_recipe

    asked, options = load_recipe([name], PlanOptions)
    return _solve(asked, options).model, ""


ASSUMED_GFLOPS = 300.0
"""Of a machine that nobody measured: two cores with bfloat16 products."""


def stated_machine(gflops: float) -> "Machine":
    """The machine of a plan that measures nothing: as the user says, as `sobre doctor` found it, or assumed."""
    from sobre.plan.chips import THIS, chips
    from sobre.plan.minutes import machine
    from sobre.plan.plan import Machine

    if gflops < 0:
        raise ConfigError(f"--gflops {gflops:g} must be above 0")
    if gflops:
        return Machine("a machine as stated", "bfloat16", gflops * 1e9, speed_is="stated")
    if this := chips().get(THIS):
        return machine(this)
    name = "a machine that was not measured (`sobre doctor` measures it)"
    return Machine(name, "bfloat16", ASSUMED_GFLOPS * 1e9, speed_is="assumed")


def _buy(options: "BuyOptions") -> None:
    from sobre.plan.buy import buy, pretraining_flops, recipe
    from sobre.plan.chips import chip
    from sobre.plan.laws import LAWS_FROM
    from sobre.plan.units import context

    on, chips = chip(options.chip, options.chips_file), _positive(options.chips)
    length, path = context(options.seq, "--seq"), Path(options.write or "mine.toml")
    if path.suffix != ".toml":
        raise ConfigError(f"--write {options.write}: a recipe's name ends in .toml")
    if pretraining_flops(options.budget, on, chips) < LAWS_FROM:
        text, plan = _buy_minutes(options.budget, on, chips, path.stem)
        shown = json.dumps(plan.to_dict()) if options.json else plan.table()
    else:
        found = buy(options.budget, on, chips, seq_len=length)
        text, shown = recipe(found, path.stem), json.dumps(found.to_dict()) if options.json else found.table()
    if options.write:
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}: sobre run {path}", file=sys.stderr)
    print(shown)


def _buy_minutes(budget: str, on: "Chip", chips: int, name: str) -> "tuple[str, Plan]":
    """The recipe and the plan of a budget too small for scaling laws: the demo's, with its sizes chosen."""
    from sobre.app.plan_options import PlanOptions
    from sobre.app.works import step_tokens
    from sobre.config.recipe import load_recipe
    from sobre.config.write import to_toml
    from sobre.plan.minutes import in_minutes

    asked, _ = load_recipe(["demo", "--budget", budget], PlanOptions)
    found, plan = in_minutes(replace(asked, name=name), on, chips, step_tokens=step_tokens(asked))
    minutes = sum(stage.seconds for stage in plan.stages) / 60
    return to_toml(found, header(found, plan, on, minutes)), plan


def header(found: "Recipe", plan: "Plan", on: "Chip", minutes: float) -> tuple[str, ...]:
    """What stands above a recipe."""
    from sobre.plan.plan import describe, short

    return (
        f"what:     {short(plan.params.active)} active of {short(plan.params.total)}: {describe(plan.model)}",
        f"command:  sobre run {found.name}.toml",
        f"hardware: {on.note or on.name}",
        f"minutes:  {minutes:,.1f} of training, planned",
        f"dollars:  {found.budget.amount} at {plan.budget.price_usd_per_h:g} usd/h ({plan.price_source})",
        "score:    not predicted: no law was fitted for so little arithmetic",
    )


def _train(options: "TrainOptions") -> None:
    from sobre.plan import show

    run = as_published(options)
    plan = training_plan(options, run)
    print(json.dumps(plan.to_dict()) if options.json else show.training(plan))
    if run is not None and not options.json:
        took = f"{run.hours:,.0f} hours for {run.tokens / 1e12:g}T tokens"
        print(f"note: batch, precision and layout as published ({run.source}): {took}")


def _page(options: "PageOptions") -> None:
    from sobre.plan.validate import validate
    from sobre.report.planning import page  # matplotlib takes a second to import

    path, plan = Path(options.out), training_plan(options, as_published(options))
    path.write_text(page(plan, validate()), encoding="utf-8")
    print(json.dumps(plan.to_dict()) if options.json else f"wrote {path}")


LAYOUT_FLAGS = ("tensor", "pipeline", "expert", "zero", "schedule", "recompute")


def as_published(options: "TrainOptions") -> "Run | None":
    """The published run that is asked for: its model on its chips, with nothing said of how it is to be trained."""
    from sobre.plan.runs import published
    from sobre.plan.units import context

    if options.batch or options.precision or any(getattr(options, name) is not None for name in LAYOUT_FLAGS):
        return None
    asked = (options.model, options.chip, options.chips, context(options.seq, "--seq"))
    same = (run for run in published() if (run.name, run.chip, run.chips, run.seq_len) == asked)
    return next(same, None)


def training_plan(options: "TrainOptions", run: "Run | None") -> "TrainingPlan":
    """The plan that the flags ask for, trained as `run` was, if that is what they ask for."""
    from sobre.plan.chips import chip
    from sobre.plan.known import model
    from sobre.plan.train import train
    from sobre.plan.units import amount, context

    wanted, on = model(options.model), chip(options.chip, options.chips_file)
    kept = {name: getattr(options, name) for name in LAYOUT_FLAGS if getattr(options, name) is not None}
    if run is not None:
        kept = run.layout | ({"recompute": run.recompute} if run.recompute else {})
    batch = amount(options.batch, "--batch") if options.batch else 0
    return train(
        wanted,
        on,
        tokens=amount(options.tokens, "--tokens") if options.tokens else 20.0 * wanted.active,
        chips=_positive(options.chips),
        seq_len=context(options.seq, "--seq"),
        batch_tokens=batch if run is None else run.batch_tokens,
        precision=options.precision or (on.usual if run is None else run.precision),
        fixed=kept,
    )


def _serve(options: "ServeOptions") -> None:
    from sobre.plan import show
    from sobre.plan.chips import chip
    from sobre.plan.known import model
    from sobre.plan.serving import serve
    from sobre.plan.units import amount, context

    plan = serve(
        model(options.model),
        chip(options.chip, options.chips_file),
        chips=options.chips,
        users=options.users,
        context=context(options.context, "--context"),
        hits=options.hits,
        variety=options.variety,
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


def _reason(options: "ReasonOptions") -> None:
    from sobre.plan import show
    from sobre.plan.chips import chip
    from sobre.plan.known import model
    from sobre.plan.reasoning import reason
    from sobre.plan.units import context

    learner, on, chips = model(options.model), chip(options.chip, options.chips_file), _positive(options.chips)
    mean, most = context(options.mean_tokens, "--mean-tokens"), context(options.max_tokens, "--max-tokens")
    if mean > most:
        raise ConfigError(f"--mean-tokens {options.mean_tokens} exceeds --max-tokens {options.max_tokens}")
    found = reason(
        learner, on, chips=chips, rollouts=options.rollouts, samples=options.samples, mean_tokens=mean,
        max_tokens=most, precision=options.precision,
    )  # fmt: skip
    print(json.dumps(found.to_dict()) if options.json else show.reasoning(found))


def _one_card(options: "CardOptions") -> None:
    from sobre.plan import show
    from sobre.plan.card import on_one_card
    from sobre.plan.chips import chip
    from sobre.plan.known import shape
    from sobre.plan.units import context

    if options.chips != 1:
        raise ConfigError(
            f"--chips {options.chips}: one card is one chip; --reason plans reinforcement learning on many"
        )
    for name in ("at_once", "micro_tokens"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)} must be 1 or more")
    cfg, _ = shape(options.model)
    found = on_one_card(
        cfg,
        options.model,
        chip(options.chip, options.chips_file),
        at_once=options.at_once,
        longest=context(options.context, "--context"),
        micro_tokens=options.micro_tokens,
        lora_rank=options.lora_rank,
        reference=options.reference,
        recompute=options.recompute,
        offload="auto" if options.offload == "auto" else options.offload == "on",
    )
    print(json.dumps(found.to_dict()) if options.json else show.one_card(found))


def _distill(options: "DistillOptions") -> None:
    from sobre.plan import show
    from sobre.plan.chips import chip
    from sobre.plan.known import model
    from sobre.plan.reasoning import DistillPlan
    from sobre.plan.serving import serve
    from sobre.plan.train import train
    from sobre.plan.units import amount, context

    on, chips = chip(options.chip, options.chips_file), _positive(options.chips)
    samples, mean = amount(options.samples, "--samples"), context(options.mean_tokens, "--mean-tokens")
    if options.epochs < 1:
        raise ConfigError(f"--epochs {options.epochs} must be 1 or more")
    found = DistillPlan(
        plan=train(model(options.model), on, tokens=samples * mean * options.epochs, chips=chips, seq_len=mean),
        teacher=serve(model(options.teacher), on, users=options.users, context=mean, weights=options.weights),
        samples=samples,
        mean_tokens=mean,
    )
    print(json.dumps(found.to_dict()) if options.json else show.distillation(found))


def _layout(options: "LayoutOptions") -> None:
    from sobre.app.plan_options import PlanOptions
    from sobre.config.recipe import load_recipe
    from sobre.plan import show
    from sobre.plan.chips import chip
    from sobre.plan.launch import line
    from sobre.plan.outline import outline
    from sobre.plan.train import train

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
    typed, notes = line(plan, options.layout, cfg, asked.pretrain.batch_tokens)
    if options.json:
        print(json.dumps(plan.to_dict() | {"command": typed, "notes": notes}))
        return
    print("\n".join([show.training(plan), "", "to run it:", f"  {typed}", *(f"note: {note}" for note in notes)]))


def _compare(options: "CompareOptions") -> None:
    from sobre.plan import show
    from sobre.plan.chips import chip
    from sobre.plan.known import model
    from sobre.plan.train import train
    from sobre.plan.units import amount

    if len(options.models) < 2:
        raise ConfigError("compare needs two models or more, such as: sobre plan compare deepseek-v3 llama-3.1-405b")
    on, tokens = chip(options.chip, options.chips_file), amount(options.tokens, "--tokens")
    plans = [
        train(model(name), on, tokens=tokens, chips=_positive(options.chips), precision=options.precision)
        for name in options.models
    ]
    document = {"schema": VERSION, "kind": "comparison", "models": [plan.to_dict() for plan in plans]}
    print(json.dumps(document) if options.json else show.comparison(plans))


def _validate(options: "ValidateOptions") -> None:
    from sobre.plan import show
    from sobre.plan.validate import validate

    found = validate()
    print(json.dumps(found.to_dict()) if options.json else show.validation(found))


def _schedule(options: "ScheduleOptions") -> None:
    from sobre.plan import show
    from sobre.plan.layout import SCHEDULES
    from sobre.plan.schedule import Durations, bubble, order, simulate

    name = next((known for known in SCHEDULES if known == options.name), None)
    if name is None:
        raise ConfigError(f"no schedule {options.name!r}; there are {', '.join(SCHEDULES)}")
    per_chip = {"interleaved": options.chunks, "dualpipev": 2}.get(name, 1)
    unit = Durations()
    placed = simulate(
        order(name, options.stages, options.micro, options.chunks), options.stages * per_chip, unit, per_chip
    )
    closed, whole = bubble(name, options.stages, unit, options.chunks), max(piece.end for piece in placed)
    if options.json:
        pieces = [
            {"chip": piece.chip, "start": piece.start, "end": piece.end, **asdict(piece.work)} for piece in placed
        ]
        document = {
            "schema": VERSION,
            "kind": "schedule",
            "name": name,
            "idle": closed,
            "whole": whole,
            "pieces": pieces,
        }
        print(json.dumps(document))
        return
    print(show.timeline(placed))
    print(f"idle {closed:g} of {whole:g}, in closed form")


def _trace(options: "TrainOptions") -> None:
    from sobre.plan import show
    from sobre.plan.trace import trace

    found = trace(training_plan(options, as_published(options)))
    print(json.dumps(found.to_dict()) if options.json else show.step_trace(found))


def _positive(chips: int) -> int:
    if chips < 1:
        raise ConfigError(f"--chips {chips} must be 1 or more")
    return chips
