"""What a budget buys that is too small for scaling laws: a recipe's run on a chip, dense or mixture by our own race.

No published law was fitted below some 1e18 FLOPs; the loss is that of our own (plan/own_law.py), as far as it reaches.
Sizes follow the recipe's rule of tokens for each active parameter (plan/solve.py). Whether experts pay was measured at
this scale: a mixture needs fewer steps than its dense twin, and makes them more slowly.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sobre.ledger.config import PriceConfig
from sobre.models.config import DenseConfig
from sobre.plan.chips import THIS, Chip
from sobre.plan.efficiency import FITTED
from sobre.plan.laws import MIXTURE_STEPS
from sobre.plan.plan import Machine, Plan
from sobre.plan.solve import solve

if TYPE_CHECKING:
    from sobre.config.recipe import Recipe

MIXTURE_RATE = 0.74
"""Steps of a mixture in the time of one of its dense twin, with Muon on two cores (docs/benchmarks.md, train)."""
DENSE = (
    "dense, as the recipe says: at some 200,000 active parameters it learned more from each token than a mixture, and"
    " made more of them (docs/lab/log.md)"
)


def in_minutes(
    recipe: "Recipe", chip: Chip, chips: int = 1, *, step_tokens: Mapping[str, int] | None = None
) -> "tuple[Recipe, Plan]":
    """The recipe with the better kind of feed-forward layer and the chosen sizes in it, and its plan.

    A mixture becomes dense where that is the better buy; a dense recipe stays dense.
    """
    flops = recipe.budget.amount.endswith("flop")
    worth = (1.0 if flops else MIXTURE_RATE) / MIXTURE_STEPS
    is_mixture = recipe.model.ffn.kind == "moe"
    if is_mixture and worth < 1:
        recipe = replace(recipe, model=replace(recipe.model, ffn=DenseConfig()))
    rent = 0.0 if chip.usd_per_h is None else chip.usd_per_h * chips
    price = PriceConfig(usd_per_h=rent, source=chip.price_source or f"no rent is known of {chip.name}")
    recipe = replace(recipe, budget=replace(recipe.budget, price=price))
    plan = solve(
        recipe,
        machine(chip, chips),
        vocab_size=recipe.tokenizer.vocab_size,
        seq_len=recipe.data.seq_len,
        step_tokens=step_tokens,
        n_problems=recipe.eval.n_problems,
    )
    plan = replace(plan, verdict=_verdict(worth, flops) if is_mixture else DENSE)
    model = replace(plan.model, vocab_size=recipe.model.vocab_size, max_len=recipe.model.max_len)
    return replace(recipe, model=model, budget=replace(recipe.budget, choose_model=False)), plan


def machine(chip: Chip, chips: int = 1) -> Machine:
    """The chip as a recipe's planner sees it: a data sheet's rate is brought down to what products reach of it."""
    peak = chip.peak(chip.usual) * FITTED.where(chip.measured).matrix
    return Machine(
        name=chip.note if chip.name == THIS else chip.name,
        dtype={"fp32": "float32", "bf16": "bfloat16"}[chip.usual],
        peak_flops=peak,
        memory_bytes=chip.memory_bytes,
        n_devices=chips,
        speed_is="measured" if chip.measured else "stated",
        watts=chip.watts,
    )


def _verdict(worth: float, flops: bool) -> str:
    race = f"for the same loss a mixture needs {MIXTURE_STEPS:.2f} of its dense twin's steps"
    speed = "" if flops else f" and makes them at {MIXTURE_RATE} of the speed"
    better = "mixture" if worth > 1 else "dense"
    return f"{better} is the better buy: at this size, {race}{speed}"
