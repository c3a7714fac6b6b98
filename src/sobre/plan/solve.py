"""What does this budget buy? Pure arithmetic: recipe and measured machine in, plan out, the same every time.

    budget - start - evaluations - end  =  what the stages share       (recipe: budget.split)
    stage seconds * peak * efficiency   =  FLOPs                       (plan/rules.py)
    FLOPs / FLOPs per token             =  tokens, for every rung of the ladder
    the rung whose tokens / active parameters comes nearest to the rule is chosen; the next one is the runner-up

A FLOP budget is the same sum without the clock: every model FLOP counts, of training, rollouts and evaluations.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, log
from typing import Protocol

from sobre.errors import ConfigError
from sobre.models.config import LoraConfig, ModelConfig
from sobre.plan.budget import MAX_FLOPS, MAX_SECONDS, Budget, parse_budget
from sobre.plan.config import BudgetConfig
from sobre.plan.count import decode_flops, flops_per_token, generate_flops, params
from sobre.plan.ladder import at_rung
from sobre.plan.own_law import Expected, expected
from sobre.plan.plan import Machine, Plan, StagePlan, describe, short
from sobre.plan.rent import rent
from sobre.plan.rules import LADDER, Rules

CLOSE = 1.02
"""How near the smallest budget that works is searched for."""


class Wanted(Protocol):
    """The part of a recipe that the planner reads."""

    @property
    def budget(self) -> BudgetConfig: ...
    @property
    def model(self) -> ModelConfig: ...
    @property
    def stages(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Purse:
    """The budget, divided: `start`, `evaluation` (after each stage), `text` (held out, read once) and `end` are kept,
    `stages` may be spent."""

    budget: Budget
    start: float
    evaluation: float
    text: float
    end: float
    stages: dict[str, float]


@dataclass(frozen=True)
class Work:
    """What a stage does beside plain training."""

    samples: bool = False
    """Each token is sampled by the model itself before it is trained on (RL, on-policy distillation)."""
    model: ModelConfig | None = None
    """The model that is trained, where it is not the run's: a student."""
    read_by: ModelConfig | None = None
    """A second model that reads each token: a teacher, a reference."""
    before: float = 0.0
    """Share of the stage's budget that is spent before its first step: on a teacher's answers."""


@dataclass(frozen=True)
class Rates:
    """What a token costs on this machine, in FLOPs, and in the budget's unit."""

    machine: Machine
    seq_len: int
    kind: str
    rules: Rules
    works: Mapping[str, Work]
    lora: LoraConfig | None = None

    def work(self, stage: str) -> Work:
        """What the stage does beside plain training."""
        return self.works.get(stage, Work(samples=stage in ("rl", "rl2")))

    def token(self, stage: str, model: ModelConfig) -> tuple[float, float]:
        """FLOPs and seconds of one trained token of a stage, with all that is done for it."""
        work = self.work(stage)
        lora = self.lora if work.model is None else None
        model = work.model or model
        train = flops_per_token(model, self.seq_len, lora=lora).train
        if work.read_by is not None:
            train += flops_per_token(work.read_by, self.seq_len).forward
        seconds = train / (self.machine.total_flops * self.rules.train_efficiency)
        if work.samples:
            sampled = decode_flops(model, [self.rules.eval_prompt + self.rules.rl_answer // 2])
            train, seconds = train + sampled, seconds + self._decode_s(sampled)
        return train / (1 - work.before), seconds / (1 - work.before)

    def tokens(self, stage: str, model: ModelConfig, amount: float) -> float:
        """Tokens of a stage that `amount` of the budget buys."""
        flops, seconds = self.token(stage, model)
        return amount / (seconds if self.kind == "seconds" else flops)

    def problem(self, model: ModelConfig) -> float:
        """What one evaluated problem costs, in the budget's unit."""
        flops = generate_flops(model, self.rules.eval_prompt, self.rules.eval_answer)
        return self._decode_s(flops) if self.kind == "seconds" else flops

    def text(self, model: ModelConfig, n_tokens: int) -> float:
        """What reading so many tokens of held-out text costs, in the budget's unit."""
        flops = flops_per_token(model, self.seq_len).forward * n_tokens
        if self.kind != "seconds":
            return flops
        return flops / (self.machine.total_flops * self.rules.read_efficiency)

    def _decode_s(self, flops: float) -> float:
        return flops / (self.machine.total_flops * self.rules.decode_efficiency)


def solve(
    recipe: Wanted,
    machine: Machine,
    *,
    vocab_size: int,
    seq_len: int,
    step_tokens: Mapping[str, int] | None = None,
    data_tokens: int | None = None,
    held_out_tokens: int = 0,
    n_problems: int = 1000,
    model: ModelConfig | None = None,
    lora: LoraConfig | None = None,
    works: Mapping[str, Work] | None = None,
    rules: Rules | None = None,
) -> Plan:
    """Plan a run.

    `step_tokens` keeps the recipe's tokens of one step for the stages that it names; `data_tokens` is the size of the
    training text of the first stage, if it can end, `held_out_tokens` what is read of the held-out text after it.
    `model` is the one that the run begins with, kept as it is and examined before the first stage; `lora` says that
    adapters are trained and not its weights, `works` which stages do more than train it.
    """
    rules = rules or Rules()
    rate = rent(recipe.budget.price, n_chips=machine.n_devices)
    budget = parse_budget(recipe.budget.amount, price_usd_per_h=rate.usd_per_h, n_devices=machine.n_devices)
    asked = n_problems if any(stage != "pretrain" for stage in recipe.stages) else 0  # else text alone is examined

    buy = partial(
        _buy,
        recipe,
        Rates(machine, seq_len, budget.kind, rules, works or {}, lora),
        price_source=rate.source,
        vocab_size=vocab_size,
        step_tokens=step_tokens or {},
        data_tokens=data_tokens,
        held_out_tokens=held_out_tokens,
        n_problems=n_problems,
        n_asked=asked,
        model=model,
    )
    try:
        return buy(budget)
    except TooSmall as small:
        raise ConfigError(f"budget {budget.text!r} is too small: {small}; {_smallest(buy, budget)}") from None


class TooSmall(ConfigError):
    """A stage gets fewer steps than can teach anything."""


def _smallest(buy: Callable[[Budget], Plan], budget: Budget) -> str:
    """The smallest budget that works, found by trying; every number shown was tried."""

    def works(amount: float) -> bool:
        try:
            buy(replace(budget, amount=amount))
        except TooSmall:
            return False
        return True

    low, high, most = budget.amount, budget.amount, MAX_SECONDS if budget.kind == "seconds" else MAX_FLOPS
    try:
        while not works(high):
            low, high = high, 2 * high
            if high > most:
                return "no budget would do on this machine: a smaller model or fewer stages might"
        while high > CLOSE * low:
            middle = (low * high) ** 0.5
            low, high = (low, middle) if works(middle) else (middle, high)
        shown = _shown(high, budget.kind)
        while not works(parse_budget(shown, price_usd_per_h=budget.price_usd_per_h).amount):
            shown = _shown(high := CLOSE * high, budget.kind)
    except ConfigError as error:
        return f"and a larger one will not do either: {error}"
    return f"the smallest that works here is about {shown}"


def _shown(amount: float, kind: str) -> str:
    """Rounded up, as a budget is written."""
    if kind == "seconds":
        return f"{ceil(amount)}s"
    digits, power = f"{amount * 1.005:.2e}".split("e")
    return f"{digits}e{int(power)}flop"


def _buy(
    recipe: Wanted,
    rates: Rates,
    budget: Budget,
    *,
    price_source: str,
    vocab_size: int,
    step_tokens: Mapping[str, int],
    data_tokens: int | None,
    held_out_tokens: int,
    n_problems: int,
    n_asked: int,
    model: ModelConfig | None,
) -> Plan:
    """What `solve` says, of one budget."""
    rules, machine, seq_len = rates.rules, rates.machine, rates.seq_len
    before = 0 if model is None else 1
    purse = divide(budget, recipe.budget, recipe.stages, rules, before=before)
    kind = model or replace(recipe.model, vocab_size=vocab_size, max_len=max(recipe.model.max_len, seq_len))
    models, notes = [kind], list[str]()
    if recipe.budget.choose_model and model is None:
        models, notes = _by_fit(kind, purse, rates, recipe.budget.tokens_per_active)
    chosen = models[0]
    # in seconds, the baselines of a text that asks no problems take the time that problems would
    need = (n_asked if budget.kind == "flops" else n_problems) * rates.problem(chosen)
    text = rates.text(chosen, held_out_tokens)
    purse = divide(budget, recipe.budget, recipe.stages, rules, before=before, need=need, text=text)
    compute = sum(rates.tokens(s, chosen, a) * rates.token(s, chosen)[0] for s, a in purse.stages.items())
    batch = max(4, round(rules.batch_scale * compute**rules.batch_power / seq_len)) * seq_len
    stages = tuple(_stage(s, chosen, purse, rates, step_tokens.get(s, batch), n_asked) for s in purse.stages)
    for stage in stages:
        _check_steps(stage, rules.least_sampled_steps if rates.work(stage.name).samples else rules.least_steps)
    notes += [
        f"{s} teaches a student, {_size(w.model)}" for s, w in rates.works.items() if s in purse.stages and w.model
    ]
    if data_tokens is not None:
        notes += _epochs(stages[0], data_tokens, rules)
    count = params(chosen)
    return Plan(
        budget=budget,
        price_source=price_source,
        machine=machine,
        model=chosen,
        params=count,
        seq_len=seq_len,
        batch_tokens=batch,
        lr=rules.lr_scale * compute**rules.lr_power,
        start=purse.start,
        stages=stages,
        end=purse.end,
        runner_up=_in_words(models, purse, rates, recipe.budget.tokens_per_active) if len(models) > 1 else "",
        notes=tuple(notes),
        expected=_expected(chosen, stages),
    )


def _expected(model: ModelConfig, stages: Sequence[StagePlan]) -> Expected | None:
    """What the pretraining reaches, if there is one."""
    found = [stage for stage in stages if stage.name == "pretrain"]
    n = params(model).active - model.vocab_size * model.d_model
    return expected(n, found[0].tokens, found[0].flops) if found else None


def divide(
    budget: Budget,
    cfg: BudgetConfig,
    stages: Sequence[str],
    rules: Rules,
    *,
    before: int = 0,
    need: float | None = None,
    text: float = 0.0,
) -> Purse:
    """Keep what start, evaluations and end need, and split the rest by the recipe's weights.

    `before` examinations come before the first stage, one after each. `need` is what one should cost:
    the reserve is not held for more than it, with a margin. `text` is kept beside it; of seconds, what the reserve does
    not hold already.
    """
    weights = {stage: float(getattr(cfg.split, stage)) for stage in stages}
    if not weights or min(weights.values()) <= 0:
        idle = ", ".join(stage for stage, weight in weights.items() if weight <= 0) or "no stage at all"
        raise ConfigError(f"budget.split gives nothing to {idle}; give it a weight, or take it out of stages")
    start, end = (rules.start_s, rules.end_s) if budget.kind == "seconds" else (0.0, 0.0)
    held = max(cfg.reserve * budget.amount - start - end, rules.least_evaluation * budget.amount)
    count = before + len(stages)
    evaluation = held / count
    if need is not None:
        evaluation = min(evaluation, need * rules.evaluation_margin)
    if budget.kind == "seconds":
        text = max(0.0, text - evaluation)
    left = budget.amount - start - end - evaluation * count - text
    shares = {stage: left * weight / sum(weights.values()) for stage, weight in weights.items()}
    return Purse(budget, start, evaluation, text, end, shares)


def _by_fit(kind: ModelConfig, purse: Purse, rates: Rates, aim: float) -> tuple[list[ModelConfig], list[str]]:
    """The ladder's models that fit the memory, the nearest to `aim` tokens per active parameter first."""
    models = [at_rung(kind, rung) for rung in LADDER]
    if rates.machine.memory_bytes is not None:
        room = rates.machine.memory_bytes * rates.rules.most_memory
        models = [model for model in models if rates.rules.training_bytes(params(model).total, model) <= room]
        if not models:
            raise ConfigError(f"the smallest model needs more than {room / 2**30:.2f} GiB of memory for training")
    largest = models[-1]

    def misfit(model: ModelConfig) -> float:
        return abs(log(_tokens_per_active(model, purse, rates) / aim))

    models.sort(key=misfit)
    at_limit = ["the largest model that ladder and memory allow is chosen"] if models[0] == largest else []
    return models, at_limit


def _stage(name: str, model: ModelConfig, purse: Purse, rates: Rates, step_tokens: int, n_problems: int) -> StagePlan:
    flops, seconds = rates.token(name, model)
    tokens = rates.tokens(name, model, purse.stages[name])
    return StagePlan(
        name=name,
        amount=purse.stages[name],
        seconds=tokens * seconds,
        flops=tokens * flops,
        tokens=int(tokens),
        step_tokens=step_tokens,
        steps=int(tokens // step_tokens),
        evaluation=purse.evaluation,
        text=purse.text if name == "pretrain" else 0.0,
        eval_problems=min(n_problems, int(purse.evaluation / rates.problem(model))),
    )


def _check_steps(stage: StagePlan, least: int) -> None:
    if stage.steps < least:
        raise TooSmall(
            f"{stage.name} gets {stage.steps} of the {least} steps that it needs at the least on this machine"
        )


def _epochs(stage: StagePlan, data_tokens: int, rules: Rules) -> list[str]:
    """What to say about the size of the training text."""
    epochs = stage.tokens / max(1, data_tokens)
    if epochs > rules.most_epochs:
        raise ConfigError(
            f"too little data for the plan: {short(stage.tokens)} trained tokens over a text of {short(data_tokens)}"
            f" are {epochs:,.0f} passes, and at most {rules.most_epochs:.0f} teach anything;"
            f" {short(stage.tokens / rules.most_epochs)} tokens of text would do, or a smaller budget"
        )
    if epochs > rules.good_epochs:
        return [f"the text is read {epochs:.1f} times; beyond {rules.good_epochs:.0f} new text would teach more"]
    return []


def _in_words(models: Sequence[ModelConfig], purse: Purse, rates: Rates, aim: float) -> str:
    """The model that was nearly chosen, and why it was not."""
    chosen, second = (params(model) for model in models[:2])
    relation = "larger" if second.active > chosen.active else "smaller"
    mine, theirs = (_tokens_per_active(model, purse, rates) for model in models[:2])
    return (
        f"a {relation} one, {_size(models[1])}; it would see"
        f" {theirs:.3g} tokens for each active parameter and the chosen one {mine:.3g}, where {aim:g} are aimed at"
    )


def _tokens_per_active(model: ModelConfig, purse: Purse, rates: Rates) -> float:
    return sum(rates.tokens(stage, model, amount) for stage, amount in purse.stages.items()) / params(model).active


def _size(model: ModelConfig) -> str:
    count = params(model)
    return f"{short(count.active)} active of {short(count.total)}: {describe(model)}"
