"""Published figures beyond pretraining beside what the planner says: reinforcement learning, and a day of service.

None of them was in the fit. Three things were never published and are *assumed*: the mean length of the answers that
R1-Zero and R1 learned from, how often R1's first stage went over its prompts, and how unequal the lengths of requests
were (plan/serving.py, VARIETY).
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sobre.plan.chips import chip
from sobre.plan.known import model
from sobre.plan.reasoning import ReasoningPlan, reason, rollout_seconds
from sobre.plan.serving import Serving, serve

SAMPLES, UPDATES_OF_A_ROLLOUT = 8192, 16
"""Answers of a rollout, and updates made of it (arXiv 2501.12948v2, training details)."""
MEAN_TOKENS = 8000
"""Tokens of an answer over all of R1-Zero's training: *assumed*; its curve runs from hundreds to 10,000 and more."""
ZERO = ((8200, 32_768), (2200, 65_536))
"""Updates, and where an answer was cut (the same)."""
SECOND_STAGE = 1700
"""Updates of R1's second stage, with the first stage's limits (the same)."""
FIRST_PROMPTS = 26_000 + 17_000 + 8_000 + 22_000 + 15_000
"""Prompts of R1's reasoning tasks: mathematics, programming, repair of programs, sciences, logic (the same)."""
PROMPTS_OF_AN_UPDATE = 32
"""Each answered 16 times (the same)."""
PASSES, PASSES_OF_ZERO = 1.0, 1.6
"""Over those prompts in R1's first stage: *assumed*, for its updates were not published; R1-Zero's 10,400 updates were
1.6 passes over its own (the same)."""
ENTERED_POST_TRAINING = 5_000.0
"""Hours of V3's post-training: entered, not predicted (arXiv 2412.19437, table 1)."""
DAY = {"input": 608e9, "output": 168e9}
"""Tokens of 27 February 2025; 56.3 % of the input from a cache, 4,989 tokens held on average."""
REVENUE = 562_027.0
"""Dollars of that day at R1's listed prices."""
ZERO_SOURCE = "arXiv 2501.12948v2, table 7"
DAY_SOURCE = "open-infra-index, day 6"


@dataclass(frozen=True)
class Check:
    """One figure."""

    what: str
    unit: str
    published: float
    predicted: float
    source: str
    note: str = ""
    is_part: bool = False
    """The prediction is of a part of what was published, and has to stay below it."""

    @property
    def error(self) -> float | None:
        return None if self.is_part else self.predicted / self.published - 1

    def to_dict(self) -> dict[str, Any]:
        return self.__dict__ | {"error": self.error}


def checks(pretrained: float, extended: float) -> tuple[Check, ...]:
    """The figures; what V3's pretraining and context extension are predicted to take is handed in."""
    zero = sum(hours(updates, most) for updates, most in ZERO)
    second = hours(SECOND_STAGE, ZERO[0][1])
    first = hours(round(FIRST_PROMPTS / PROMPTS_OF_AN_UPDATE), ZERO[0][1])
    prefill, decode = unit(32, 32), unit(144, 88 * 144)
    chips = DAY["input"] / prefill.prefill_per_chip / 86_400 + DAY["output"] / decode.decode_per_chip / 86_400
    usd = chips * 24 * 2
    return (
        Check("deepseek-v3, all stages", "h", 2_788_000, pretrained + extended + ENTERED_POST_TRAINING,
              "arXiv 2412.19437, table 1", "5,000 h of post-training entered"),
        Check("r1-zero, 10,400 updates", "h", 101_000, zero, ZERO_SOURCE, f"answers of {MEAN_TOKENS:,} tokens assumed"),
        Check("r1, both stages", "h", 41_000, PASSES * first + second, ZERO_SOURCE,
              f"answers as r1-zero's, and {PASSES:g} pass of stage one over its {FIRST_PROMPTS:,} prompts assumed:"
              f" {PASSES_OF_ZERO:g}, as r1-zero's, would be {PASSES_OF_ZERO * first + second:,.0f}"),
        Check("r1, its 1,700 last updates", "h", 41_000, second, ZERO_SOURCE,
              "a part: what is left when nothing is assumed of stage one", is_part=True),
        Check("prefill, node of 8 h800", "tokens/s", 73_700, 8 * prefill.prefill_per_chip, DAY_SOURCE,
              "unequal requests assumed"),
        Check("decode, node of 8 h800", "tokens/s", 14_800, 8 * decode.decode_per_chip, DAY_SOURCE),
        Check("decode, one user", "tokens/s", 21, decode.tokens_per_s_per_user, DAY_SOURCE, "20 to 22 published"),
        Check("a day of service", "usd", 87_072, usd, DAY_SOURCE),
        Check("revenue over cost, less 1", "%", 545, 100 * (REVENUE / usd - 1), DAY_SOURCE),
    )  # fmt: skip


def hours(updates: int, most: int) -> float:
    """Chip-hours of R1-Zero's kind of training on its 512 chips, answers cut at `most` tokens."""
    seconds = rollout_seconds(
        model("deepseek-v3"), chip("h800"), chips=512, samples=SAMPLES, mean_tokens=MEAN_TOKENS, max_tokens=most,
        weights="fp8",
    )  # fmt: skip
    return updates / UPDATES_OF_A_ROLLOUT * replace(_rollout(), rollout_s=seconds).gpu_hours


@cache
def _rollout() -> ReasoningPlan:
    """A rollout and what is learned from it; where answers are cut does not change the latter."""
    return reason(
        model("deepseek-v3"), chip("h800"), chips=512, rollouts=1, samples=SAMPLES, mean_tokens=MEAN_TOKENS,
        max_tokens=ZERO[0][1], precision="fp8",
    )  # fmt: skip


def unit(chips: int, users: int) -> Serving:
    """A serving unit of that day."""
    return serve(model("deepseek-v3"), chip("h800"), chips=chips, users=users, context=4989, hits=0.563, weights="fp8")
