"""One step of a pipeline as a profiler tells it: seconds of forwards alone, backwards alone, both at once, idle.

The plan's seconds (plan/step.py) are dealt out over the pieces of the played schedule (plan/schedule.py), for the chip
that holds the first stage.
"""

from dataclasses import dataclass
from typing import Any

from sobre.plan.efficiency import FITTED
from sobre.plan.layout import n_micro_batches
from sobre.plan.schedule import order
from sobre.plan.step import exchange, turns
from sobre.plan.train import TrainingPlan
from sobre.schemas import VERSION

PUBLISHED = {
    ("deepseek-v3", "h800", 2048): {
        "1F": 1.13,
        "1B": 1.99,
        "1W": 0.48,
        "1F1B": 13.95,
        "bubble": 2.06,
        "optimizer": 0.29,
        "whole": 19.926,
    }
}
"""Seconds of a step. DeepSeek, "Insights into DeepSeek-V3" (arXiv 2505.09343), table 4."""
BESIDE_PIECES = ("bubble", "optimizer", "data", "lost")
"""Parts of a plan's step that are no work on a micro-batch."""


@dataclass(frozen=True)
class Trace:
    """Seconds by kind of work."""

    plan: TrainingPlan
    seconds: dict[str, float]

    @property
    def published(self) -> dict[str, float]:
        """The same, as published; empty where nothing was."""
        return PUBLISHED.get((self.plan.model.name, self.plan.chip.name, self.plan.chips), {})

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "schema": VERSION,
            "kind": "trace",
            "layout": self.plan.layout.to_dict(),
            "seconds": self.seconds,
            "published": self.published,
        }


def trace(plan: TrainingPlan) -> Trace:
    """1F, 1B (with the gradients of weights where they are not put off), 1W, 1F1B, and what is no micro-batch.

    `optimizer` is the update and the exchange around it (gradients summed, weights gathered) as if it stood alone;
    `hidden`, which is negative, is what of the exchange the plan takes to go on behind the work on micro-batches.
    """
    layout, turn = plan.layout, turns(plan.layout)
    per_chip = {"interleaved": layout.chunks, "dualpipev": 2}.get(layout.schedule, 1)
    n_micro = n_micro_batches(layout, plan.batch_tokens, plan.seq_len)
    work = order(layout.schedule, layout.pipeline, n_micro, layout.chunks)
    lasts = {"F": turn.forward, "B": turn.backward, "W": turn.weight, "D": turn.backward + turn.weight}
    amounts = dict.fromkeys(("1F", "1B", "1W", "1F1B"), 0.0)
    for pieces in work[0]:
        kind = "1F1B" if len(pieces) > 1 else f"1{pieces[0].kind}".replace("D", "B")
        amounts[kind] += sum(lasts[piece.kind] for piece in pieces) / per_chip
    busy_s = sum(seconds for name, seconds in plan.parts.items() if name not in BESIDE_PIECES)
    unit_s = busy_s / (n_micro * (turn.forward + turn.backward + turn.weight))
    seconds = {kind: amount * unit_s for kind, amount in amounts.items()}
    exchange_s = exchange(plan.load, plan.chip, FITTED)
    seconds |= {
        "bubble": plan.parts["bubble"],
        "optimizer": plan.parts["optimizer"] + exchange_s,
        "hidden": plan.parts["data"] - exchange_s,
        "lost": plan.parts["lost"],
    }
    return Trace(plan, seconds | {"whole": plan.step_s})
