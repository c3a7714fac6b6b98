"""Plans as tables for the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sobre.ledger.prices import GRID_KG_PER_KWH
from sobre.plan.plan import short
from sobre.plan.schedule import Placed, idle

if TYPE_CHECKING:
    from sobre.plan.card import OnOneCard
    from sobre.plan.reasoning import DistillPlan, ReasoningPlan
    from sobre.plan.serving import Serving
    from sobre.plan.trace import Trace
    from sobre.plan.train import TrainingPlan
    from sobre.plan.validate import Validation


def training(plan: "TrainingPlan") -> str:
    """A training run: size, time, money, where the time goes, what a chip holds."""
    model, chip = plan.model, plan.chip
    usd = "no price for this chip" if plan.cost_usd is None else f"{money(plan.cost_usd)} at {chip.usd_per_h:g} usd/h"
    source = f" ({chip.price_source})" if chip.price_source else ""
    held = sum(plan.memory.values())
    lines = [
        f"model     {model.name}: {model.total:,} parameters, {short(model.active)} active,"
        f" {plan.flops_per_token / 1e9:,.4g} GFLOP per trained token of {plan.seq_len:,}",
        f"run       {short(plan.tokens)} tokens in steps of {short(plan.batch_tokens)}, {plan.precision},"
        f" on {plan.chips:,} {chip.name}",
        f"layout    {plan.layout}",
        f"time      {short(plan.gpu_hours)} chip-hours, {plan.days:,.3g} days, {plan.mfu:.1%} of the"
        f" {'32' if chip.usual == 'fp32' else '16'}-bit peak",
        f"money     {usd}{source}",
        f"energy    {short(plan.energy_kwh * 1000)}Wh, {plan.energy_kwh * GRID_KG_PER_KWH / 1000:,.3g} t CO2"
        f" at {GRID_KG_PER_KWH} kg/kWh, estimated",
        f"memory    {held / 1e9:.1f} of {chip.memory_gb:g} GB on each chip",
        *([] if plan.saved_s is None else [f"disk      {plan.saved_s:,.3g} s to save the state"]),
        "",
    ]
    parts = {name: value for name, value in plan.parts.items() if value > 0.001 * plan.step_s}
    lines += _bars("where the time goes", parts, plan.step_s, "s")
    lines += ["", *_bars("what a chip holds", plan.memory, held, "GB", 1e9)]
    if plan.runner_up:
        lines += ["", f"nearly chosen: {plan.runner_up}"]
    if chip.note:
        lines.append(f"note: {chip.name}: {chip.note}")
    return "\n".join(lines)


def serving(plan: "Serving", day: tuple[float, float] | None = None) -> str:
    """A serving unit; `day` is the input and the output tokens of a day."""
    prices = {kind: plan.price(kind) for kind in ("input", "cached", "output")}
    money_line = (
        "no price for this chip"
        if prices["input"] is None
        else ", ".join(f"{kind} {value:.4g}" for kind, value in prices.items())
        + f" usd for a million tokens, at full load and {plan.chip.usd_per_h:g} usd/h ({plan.chip.price_source})"
    )
    held = sum(plan.memory.values())
    model, chip = plan.model, plan.chip
    lines = [
        f"model     {model.name}: {model.total:,} parameters, {short(model.active)} active, in {plan.weights}",
        f"unit      {plan.chips} {chip.name}, {plan.users} users at {plan.context:,} tokens, cache in {plan.cache}",
        f"output    {plan.tokens_per_s_per_user:,.3g} tokens/s for a user, {plan.decode_per_chip:,.4g} for a chip",
        f"input     {plan.prefill_per_chip:,.4g} tokens/s for a chip, {plan.hits:.0%} of them from the prefix cache",
        f"money     {money_line}",
        f"memory    {held / 1e9:.1f} of {plan.chip.memory_gb:g} GB on each chip",
        "",
    ]
    lines += _bars("what a chip holds", plan.memory, held, "GB", 1e9)
    for api in plan.break_even():
        lines.append(
            f"break-even at {api['load']:.0%} load with {api['usd_per_million_output']:g} usd for a million output"
            f" tokens ({api['source']})"
        )
    if day:
        chips = plan.chips_for(*day)
        usd = "" if plan.chip.usd_per_h is None else f", {money(chips * 24 * plan.chip.usd_per_h)} a day"
        lines.append(f"{short(day[0])} tokens in and {short(day[1])} out a day keep {chips:,.0f} chips busy{usd}")
    return "\n".join(lines)


def reasoning(plan: "ReasoningPlan") -> str:
    """Reinforcement learning."""
    usd = "" if plan.cost_usd is None else f", {money(plan.cost_usd)} at {plan.plan.chip.usd_per_h:g} usd/h"
    return "\n".join(
        [
            f"model     {plan.plan.model.name} on {plan.plan.chips} {plan.plan.chip.name}",
            f"rollouts  {plan.rollouts:,.0f} of {plan.samples:,.0f} answers, {plan.mean_tokens:,.0f} tokens on average",
            f"sampling  {plan.rollout_s:,.0f} s each: {short(plan.generate_hours)} chip-hours",
            f"updates   {short(plan.tokens)} tokens: {short(plan.update_hours)} chip-hours",
            f"all       {short(plan.gpu_hours)} chip-hours{usd}",
        ]
    )


def one_card(plan: "OnOneCard") -> str:
    """Sampler and trainer on one chip."""
    settled, load, chip = plan.settled, plan.load, plan.chip
    learn = f"adapters of {short(load.adapters)} learn" if load.adapters else "all weights learn"
    return "\n".join(
        [
            f"model     {plan.name}: {load.model.total:,} parameters, {learn}",
            f"sampling  {plan.at_once:,} answers at once, of up to {plan.longest:,} tokens with their questions",
            f"learning  {load.tokens:,} tokens in a forward and backward pass",
            f"memory    {settled.planned / 1e9:.1f} of {chip.memory_gb:g} GB of the {chip.name}",
            f"settled   {settled.reason}",
            "",
            *_bars("what it holds when it is fullest", settled.parts, settled.planned, "GB", 1e9),
        ]
    )


def distillation(plan: "DistillPlan") -> str:
    """A student and its teacher."""
    usd = "" if plan.cost_usd is None else f", {money(plan.cost_usd)} at {plan.plan.chip.usd_per_h:g} usd/h"
    teacher = plan.teacher
    return "\n".join(
        [
            f"student   {plan.plan.model.name} on {plan.plan.chips} {plan.plan.chip.name}:"
            f" {short(plan.plan.tokens)} tokens, {short(plan.plan.gpu_hours)} chip-hours",
            f"teacher   {teacher.model.name} on units of {teacher.chips}, {teacher.users} answers at once:"
            f" {plan.samples:,.0f} answers of {plan.mean_tokens:,.0f} tokens, {short(plan.sampling_hours)} chip-hours",
            f"all       {short(plan.gpu_hours)} chip-hours{usd}",
        ]
    )


def validation(found: "Validation") -> str:
    """Predicted against published, fitted and left out side by side."""
    head = (
        f"{'run':<20} {'chip':<8} {'published':>12} {'predicted':>12} {'fitted':>8} {'left out':>9}  not scored because"
    )
    lines = [head]
    for row in found.rows:
        left = "" if row.left_out is None else f"{row.left_out:+.1%}"
        lines.append(
            f"{row.run.name:<20} {row.run.chip:<8} {row.run.hours:>12,.0f} {row.predicted:>12,.0f} {row.error:>+8.1%}"
            f" {left:>9}  {row.run.unscored}".rstrip()
        )
    lines.append("")
    for name, since in (("all scored runs", 0), ("2024 and later", 2024)):
        fitted, left_out = found.spread(left_out=False, since=since), found.spread(left_out=True, since=since)
        lines.append(
            f"{name} ({fitted['n']}): median error fitted {fitted['median']:.1%}, left out {left_out['median']:.1%};"
            f" worst fitted {fitted['worst']:.2f}x, left out {left_out['worst']:.2f}x"
        )
    lines.append(f"deepseek-v3 with V3 and V2 left out of the fit: {found.without_deepseek:+.1%}")
    lines += ["", f"{'beyond pretraining':<27} {'published':>12} {'predicted':>12} {'':<8} {'error':>7}"]
    for check in found.beyond:
        off = "a part" if check.error is None else f"{check.error:+.1%}"
        lines.append(
            f"{check.what:<27} {check.published:>12,.0f} {check.predicted:>12,.0f} {check.unit:<8} {off:>7}"
            f"  {check.note}".rstrip()
        )
    lines.append("")
    constants = ", ".join(f"{name} {getattr(found.fitted, name):.3g}" for name in found.fitted.__dataclass_fields__)
    return "\n".join([*lines, f"constants: {constants}"])


def comparison(plans: "Sequence[TrainingPlan]") -> str:
    """Training runs side by side."""
    rows = [
        ("", *[plan.model.name for plan in plans]),
        ("parameters", *[short(plan.model.total) for plan in plans]),
        ("active", *[short(plan.model.active) for plan in plans]),
        ("GFLOP per token", *[f"{plan.flops_per_token / 1e9:,.4g}" for plan in plans]),
        ("cache kB per token", *[f"{plan.model.cache_bytes_per_token() / 1e3:,.4g}" for plan in plans]),
        ("tokens", *[short(plan.tokens) for plan in plans]),
        ("chips", *[f"{plan.chips:,} {plan.chip.name}" for plan in plans]),
        ("chip-hours", *[short(plan.gpu_hours) for plan in plans]),
        ("days", *[f"{plan.days:,.3g}" for plan in plans]),
        ("usd", *["" if plan.cost_usd is None else money(plan.cost_usd) for plan in plans]),
        ("MWh", *[f"{plan.energy_kwh / 1000:,.4g}" for plan in plans]),
        ("of the peak", *[f"{plan.mfu:.1%}" for plan in plans]),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *[cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]])
        for row in rows
    )


def step_trace(found: "Trace") -> str:
    """Predicted seconds of a step by kind of work, beside published ones."""
    lines = [
        f"layout       {found.plan.layout}",
        "",
        f"{'':<12} {'predicted':>9}" + "  published" * bool(found.published),
    ]
    for kind, seconds in found.seconds.items():
        said = f"  {found.published[kind]:9.2f}" if kind in found.published else ""
        lines.append(f"{kind:<12} {seconds:9.2f}{said}")
    return "\n".join(lines)


def timeline(placed: Sequence[Placed], width: int = 100) -> str:
    """A pipeline schedule, a line for each chip: digits are forward, letters backward, w weights, dots idle."""
    end = max(piece.end for piece in placed)
    scale = width / end
    lines = []
    for chip in range(1 + max(piece.chip for piece in placed)):
        row = ["."] * width
        for piece in (piece for piece in placed if piece.chip == chip):
            mark = {"F": "F", "W": "w"}.get(piece.work.kind, "B")
            if piece.work.direction:
                mark = {"F": "f", "B": "b", "w": "w"}[mark]
            for column in range(round(piece.start * scale), round(piece.end * scale)):
                row[column] = mark
        lines.append(f"chip {chip:>2} {''.join(row)} idle {idle(list(placed), chip) / end:.1%}")
    return "\n".join(lines)


def money(usd: float) -> str:
    """20 usd, 5.328M usd."""
    return f"{short(usd)} usd" if usd >= 1e4 else f"{usd:,.2f} usd"


def _bars(title: str, parts: dict[str, float], whole: float, unit: str, scale: float = 1.0) -> list[str]:
    lines = [title]
    for name, value in sorted(parts.items(), key=lambda item: -item[1]):
        share = value / whole
        lines.append(f"  {name:<12} {value / scale:>9.4g} {unit:<3} {share:>6.1%} {'#' * round(40 * share)}".rstrip())
    return lines
