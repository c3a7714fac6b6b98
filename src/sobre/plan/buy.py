"""The best model that a budget buys on a chip of the table: sizes, dense or mixture, tokens, layout, expected loss.

    budget -> chip-hours -> share of pretraining -> for every size, dense and mixture, and every format of the chip:
    hours for a token (plan/train.py) -> tokens -> expected loss (plan/laws.py); the lowest wins, the next is runner-up

What a laptop learns in minutes is planned by plan/solve.py, from a measured machine and a recipe.
"""

from dataclasses import asdict, dataclass, replace
from math import ceil, log2
from typing import Any

from sobre.data.config import DataConfig
from sobre.errors import ConfigError
from sobre.ledger.config import PriceConfig
from sobre.ledger.prices import GRID_KG_PER_KWH
from sobre.models.config import DenseConfig, GQAConfig, MLAConfig, ModelConfig, MoEConfig
from sobre.optim.config import OptimConfig
from sobre.plan.budget import MAX_SECONDS, Budget, parse_budget
from sobre.plan.chips import THIS, Chip, this_file
from sobre.plan.config import BudgetConfig, SplitConfig
from sobre.plan.ladder import at_rung
from sobre.plan.launch import division, micro_tokens, starter
from sobre.plan.laws import FITTED_FROM, Loss, expected_loss
from sobre.plan.outline import outline
from sobre.plan.plan import describe, short
from sobre.plan.rules import LADDER, Rules, Rung
from sobre.plan.train import TrainingPlan, energy_kwh, train
from sobre.schemas import VERSION
from sobre.tokenizer.config import TokenizerConfig
from sobre.train.config import PretrainConfig

SPLIT = {"pretrain": 0.80, "sft": 0.05, "rl": 0.10, "evaluation": 0.05}
"""Shares of the budget. R1's reinforcement learning took 5 % of V3's pretraining, V3.2's more than 10 %
(arXiv 2512.02556, 3); the rest is *assumed*."""
WHOLE = 4.0
"""Bytes of a parameter of the whole model that samples beside a divided one."""
SIZES = LADDER + tuple(
    Rung(d, n)
    for d, n in [
        (2560, 32), (3072, 32), (4096, 32), (5120, 40), (6144, 48), (8192, 64), (10_240, 72), (12_288, 80),
        (16_384, 96),
    ]
)  # fmt: skip
DENSE = ModelConfig(vocab_size=32_768, attention=GQAConfig(qk_norm=True), ffn=DenseConfig(), max_len=4096)
MIXTURE, SPARSE = (
    ModelConfig(vocab_size=32_768, attention=MLAConfig(), ffn=ffn, max_len=4096)
    for ffn in (MoEConfig(n_experts=64, n_active=6, n_shared=2), MoEConfig(n_experts=256, n_active=8, n_shared=1))
)
"""The proportions of DeepSeekMoE (arXiv 2401.06066): 6 of 64 experts and 2 shared; and of DeepSeek-V3: 8 of 256 and 1.
The latter is looked at where the laws were fitted: what so many experts bring to less is not known."""
USUAL_SHARE = 0.3
"""Share of the peak with which sizes are first sorted; the plans of the best ones are then made in full."""
LOOKED_AT = 3
"""Sizes of each kind that are planned in full."""
WORTH_FP8 = 1.1
"""FP8 asks for care with scales and sums (arXiv 2412.19437, 3.3): it is chosen where it is faster by this factor."""
LARGEST_CORPUS = 45e12
"""Tokens of the largest published pretraining (DeepSeek-V4.1-Flash): a plan that needs more says so."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One candidate."""

    cfg: ModelConfig
    plan: TrainingPlan
    loss: Loss

    @property
    def rate(self) -> float:
        """Tokens in a chip-hour."""
        return self.plan.tokens / self.plan.gpu_hours

    @property
    def kind(self) -> str:
        return "mixture" if self.plan.model.is_moe else "dense"

    def words(self) -> str:
        model, plan = self.plan.model, self.plan
        return (
            f"{self.kind}, {short(model.active)} active of {short(model.total)} ({describe(self.cfg)}),"
            f" {short(plan.tokens)} tokens in {plan.precision}: loss {self.loss.value:.3f}"
        )


@dataclass(frozen=True, kw_only=True)
class Purchase:
    """The best offer, the next one, and the best of the other kind."""

    budget: Budget
    chip: Chip
    chips: int
    hours: float
    """Chip-hours of everything."""
    best: Offer
    second: Offer | None
    other: Offer | None
    """The best of the other kind: dense if a mixture won, and the other way round."""
    lr: float
    notes: tuple[str, ...]

    @property
    def cost_usd(self) -> float | None:
        """Of everything."""
        return self.chip.usd(self.hours)

    @property
    def energy_kwh(self) -> float:
        """Of everything."""
        return energy_kwh(self.chip, self.hours)

    @property
    def verdict(self) -> str:
        """Dense or mixture, and why."""
        if self.other is None:
            return f"{self.best.kind}: nothing of the other kind fits these chips"
        gap, mine, theirs = self.other.loss.value - self.best.loss.value, self.best.plan, self.other.plan
        speed = (mine.flops_per_token * mine.tokens) / (theirs.flops_per_token * theirs.tokens)
        return (
            f"{self.best.kind} is the better buy, by {gap:.3f} nats: it makes {speed:.2f} times the model FLOPs of the"
            f" best {self.other.kind} offer in the same hours"
        )

    @property
    def why_not_second(self) -> str:
        if self.second is None:
            return ""
        gap = self.second.loss.value - self.best.loss.value
        more = self.second.plan.tokens / self.best.plan.tokens
        return f"{self.second.words()}; lost by {gap:.4f} nats with {more:.2g} times the tokens"

    def to_dict(self) -> dict[str, Any]:
        return self.best.plan.to_dict() | {
            "schema": VERSION,
            "kind": "purchase",
            "budget": self.budget.to_dict(),
            "split": dict(SPLIT),
            "gpu_hours_all": self.hours,
            "cost_usd_all": self.cost_usd,
            "energy_kwh_all": self.energy_kwh,
            "co2_kg_all": self.energy_kwh * GRID_KG_PER_KWH,
            "architecture": asdict(self.best.cfg),
            "dense_or_mixture": self.best.kind,
            "verdict": self.verdict,
            "lr": self.lr,
            "expected_loss": asdict(self.best.loss),
            "second": self.why_not_second,
            "notes": list(self.notes),
        }

    def table(self) -> str:
        plan = self.best.plan
        usd = "" if self.cost_usd is None else f", {self.cost_usd:,.2f} usd"
        loss = self.best.loss
        source = f" at {self.chip.usd_per_h:g} usd/h ({self.chip.price_source})" if usd else ""
        lines = [
            f"budget    {self.budget.text} on {self.chips} {self.chip.name}:"
            f" {short(self.hours)} chip-hours{usd}{source}",
            f"split     {', '.join(f'{name} {share:.0%}' for name, share in SPLIT.items())}",
            f"model     {self.best.words().rpartition(':')[0]}",
            f"          expected loss {loss.value:.2f} nats per token; the laws span {loss.low:.2f} to {loss.high:.2f}",
            f"steps     {short(plan.batch_tokens)} tokens each, peak AdamW rate {self.lr:.2g}, {plan.layout}",
            f"energy    {self.energy_kwh:,.3g} kWh, {self.energy_kwh * GRID_KG_PER_KWH:,.3g} kg CO2"
            f" at {GRID_KG_PER_KWH} kg/kWh, estimated",
            f"time      {plan.gpu_hours / plan.chips:,.3g} h of pretraining at {plan.mfu:.1%} of the peak,"
            f" {sum(plan.memory.values()) / 1e9:.1f} of {self.chip.memory_gb:g} GB",
            f"verdict   {self.verdict}",
        ]
        if self.second:
            lines.append(f"runner-up {self.why_not_second}")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def buy(text: str, chip: Chip, chips: int, *, seq_len: int = 4096, rules: Rules | None = None) -> Purchase:
    """The best plan for a budget on `chips` chips; a ConfigError says which limit breaks first."""
    rules = rules or Rules()
    budget = _parsed(text, chip, chips)
    hours = budget.amount / 3600 * chips if budget.kind == "seconds" else None
    flops = None if hours is not None else budget.amount * SPLIT["pretrain"]
    best: list[Offer] = []
    kinds = (DENSE, MIXTURE, SPARSE) if pretraining_flops(text, chip, chips) >= FITTED_FROM else (DENSE, MIXTURE)
    for kind in kinds:
        best += _offers(kind, chip, chips, seq_len, hours, flops)
    if not best:
        raise ConfigError(
            f"no model of the ladder fits {chips} {chip.name} of {chip.memory_gb:g} GB for training;"
            " memory is the limit: more chips, or larger ones"
        )
    best.sort(key=lambda offer: offer.loss.value)
    won = best[0]
    _check_time(budget, won, chip, chips)
    compute = won.plan.flops_per_token * won.plan.tokens
    other = next((offer for offer in best if offer.kind != won.kind), None)
    notes = ["sizes are the best for training alone; what is served much should be smaller and see more tokens"]
    if compute < FITTED_FROM:
        notes.append(
            f"the laws were fitted from {FITTED_FROM:.0e} FLOP on, and this is {compute:.1e}: an extrapolation"
        )
    if won.plan.tokens > LARGEST_CORPUS:
        notes.append(f"{short(won.plan.tokens)} tokens are more than anybody has published; text is the limit here")
    if won.cfg.d_model == SIZES[-1].d_model:
        notes.append("the largest size that the planner knows is chosen")
    return Purchase(
        budget=budget,
        chip=chip,
        chips=chips,
        hours=won.plan.gpu_hours / SPLIT["pretrain"],
        best=won,
        second=best[1] if len(best) > 1 else None,
        other=other,
        lr=rules.lr_scale * compute**rules.lr_power,
        notes=tuple(notes),
    )


def _check_time(budget: Budget, won: Offer, chip: Chip, chips: int) -> None:
    """A budget of arithmetic names no time: what takes more than a year of the chips is refused."""
    seconds = won.plan.gpu_hours / SPLIT["pretrain"] / chips * 3600
    if seconds > MAX_SECONDS:
        digits = f"{budget.amount * MAX_SECONDS / seconds * 0.95:.1e}".replace("e+", "e")
        more = 2 ** ceil(log2(chips * seconds / MAX_SECONDS))
        raise ConfigError(
            f"budget {budget.text!r} would take {seconds / MAX_SECONDS:,.3g} years on {chips:,} {chip.name}: time"
            f" breaks first; what would fit into one: {digits}flop, or about {more:,} {chip.name}"
        )


def pretraining_flops(text: str, chip: Chip, chips: int) -> float:
    """Arithmetic that the budget buys for pretraining, at the usual share of the peak."""
    budget = _parsed(text, chip, chips)
    if budget.kind == "flops":
        return budget.amount * SPLIT["pretrain"]
    return budget.amount * chips * SPLIT["pretrain"] * chip.peak(chip.usual) * USUAL_SHARE


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _parsed(text: str, chip: Chip, chips: int) -> Budget:
    if chip.usd_per_h is None and text.endswith("usd"):
        where = this_file() if chip.name == THIS else "your --chips-file"
        raise ConfigError(f"budget {text!r} needs a rent, and {chip.name} has none; put usd_per_h into {where}")
    return parse_budget(text, price_usd_per_h=(chip.usd_per_h or 0.0) * chips, n_devices=chips)


def recipe(bought: Purchase, name: str) -> str:
    """The purchase as a recipe that `sobre run` takes: all that was decided stands in it."""
    from sobre.config.recipe import Recipe  # every section of a recipe, which a plan alone does not need
    from sobre.config.write import to_toml

    cfg, plan, chips = bought.best.cfg, bought.best.plan, bought.chips
    usd = "unknown" if bought.cost_usd is None else f"{bought.cost_usd:,.2f}"
    rent = PriceConfig(source=f"no rent is known of {bought.chip.name}", usd_per_h=0.0)
    if bought.chip.usd_per_h is not None:
        rent = PriceConfig(usd_per_h=bought.chip.usd_per_h * chips, source=bought.chip.price_source)
    layout = plan.layout
    header = [
        f"what:     {bought.best.words()}",
        f"command:  {starter(chips, bought.chip)} {name}.toml --data YOUR-TEXT",
        f"hardware: {chips} {bought.chip.name}",
        f"layout:   {plan.layout}, {plan.precision}",
        f"minutes:  {bought.hours / chips * 60:,.0f}, planned",
        f"dollars:  {usd}",
        f"score:    expected loss {bought.best.loss.value:.2f} nats per token"
        f" ({bought.best.loss.low:.2f} to {bought.best.loss.high:.2f})",
    ]
    parallel, notes = division(layout, cfg)
    if parallel.is_divided:
        whole_gib = WHOLE * (plan.model.total + plan.model.mtp_total) / 2**30
        notes.append(f"in rl every process also holds the whole weights, to sample: {whole_gib:,.1f} GiB")
    header += [f"note:     {note}" for note in notes]
    stage = PretrainConfig(
        batch_tokens=int(plan.batch_tokens),
        micro_tokens=micro_tokens(plan, parallel),
        precision="fp8" if plan.precision == "fp8" else "auto",
    )
    split = SplitConfig(**{stage: SPLIT[stage] for stage in ("pretrain", "sft", "rl")})
    found = Recipe(
        name=name,
        budget=BudgetConfig(
            amount=bought.budget.text,
            price=rent,
            split=split,
            reserve=SPLIT["evaluation"],
            tokens_per_active=_rounded(plan.tokens / plan.model.active),
            choose_model=False,
        ),
        tokenizer=TokenizerConfig(vocab_size=cfg.vocab_size),
        data=DataConfig(seq_len=plan.seq_len),
        model=replace(cfg, vocab_size=0, max_len=0),
        optim=OptimConfig(lr=_rounded(bought.lr), lr_adam=_rounded(bought.lr)),
        pretrain=stage,
        parallel=parallel,
    )
    return to_toml(found, tuple(header))


def _offers(
    kind: ModelConfig, chip: Chip, chips: int, seq_len: int, hours: float | None, flops: float | None
) -> list[Offer]:
    """The best sizes of a kind: first by a usual share of the peak, then planned in full."""
    rate = chip.peak(chip.usual) * USUAL_SHARE
    compute = flops if flops is not None else (hours or 0.0) * 3600 * SPLIT["pretrain"] * rate
    models = []
    for rung in SIZES:
        cfg = at_rung(kind, rung)
        drawn = outline(cfg, f"{cfg.ffn.kind}-{rung.d_model}x{rung.n_layers}")
        tokens = compute / drawn.flops_per_token(seq_len)
        models.append((expected_loss(drawn, tokens, compute).value, cfg, drawn))
    models.sort(key=lambda one: one[0])
    found = []
    for _, cfg, drawn in models[:LOOKED_AT]:
        offer = _offer(cfg, drawn, chip, chips, seq_len, chip.usual, hours, flops)
        fp8 = chip.peak("fp8") > chip.peak(chip.usual)
        narrow = _offer(cfg, drawn, chip, chips, seq_len, "fp8", hours, flops) if fp8 else None
        if offer and narrow and narrow.rate > WORTH_FP8 * offer.rate or not offer:
            offer = narrow
        if offer:
            found.append(offer)
    if not found:  # the best do not fit: the largest that does
        for _, cfg, drawn in sorted(models, key=lambda one: -one[2].total):
            offer = _offer(cfg, drawn, chip, chips, seq_len, chip.usual, hours, flops)
            if offer is not None:
                return [offer]
    return found


def _offer(
    cfg: ModelConfig, drawn: Any, chip: Chip, chips: int, seq_len: int, precision: str,
    hours: float | None, flops: float | None,
) -> Offer | None:  # fmt: skip
    rules = Rules()
    per_token = drawn.flops_per_token(seq_len)
    guess = (
        flops if flops is not None else (hours or 0.0) * 3600 * SPLIT["pretrain"] * chip.peak(chip.usual) * USUAL_SHARE
    )
    batch = max(rules.batch_scale * guess**rules.batch_power, seq_len * chips)
    try:
        plan = train(drawn, chip, tokens=1e9, chips=chips, seq_len=seq_len, batch_tokens=batch, precision=precision)
    except ConfigError:  # does not fit: no offer; the caller says so if nothing does
        return None
    if flops is not None:
        tokens = flops / per_token
    else:
        tokens = (hours or 0.0) * SPLIT["pretrain"] / plan.gpu_hours * 1e9
    plan = plan.with_tokens(tokens)
    return Offer(cfg=cfg, plan=plan, loss=expected_loss(drawn, tokens, tokens * per_token))
