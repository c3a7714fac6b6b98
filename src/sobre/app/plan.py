"""sobre plan RECIPE: what would this budget buy here? No torch, no training: arithmetic on a stated speed."""

import json
from dataclasses import dataclass

from sobre.config.recipe import load_recipe
from sobre.plan.plan import Machine
from sobre.plan.solve import solve


@dataclass(frozen=True)
class PlanOptions:
    """Flags of `sobre plan` that are no part of the recipe."""

    gflops: float = 300.0
    """Matrix products of the machine in its training dtype, in GFLOP/s; `sobre doctor` measures it."""
    dtype: str = "bfloat16"
    """What training computes in."""
    json: bool = False
    """One JSON document on standard output."""


def main(argv: list[str]) -> int:
    """Solve and show."""
    recipe, options = load_recipe(argv, PlanOptions, prog="sobre plan")
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
    return 0
