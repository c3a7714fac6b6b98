"""Why nothing can be learned, in words: what a run says when it gives up.

Reinforcement learning learns from differences. When step after step every group of answers earns one and the same, the
weights stand still while the budget goes; the last answers say what is wrong.
"""

from collections.abc import Mapping

from sobre.rl.rollout import Rollouts

SHOWN = 160
"""Characters of the answer that is quoted."""


def why_barren(rollouts: Rollouts, pass_rates: Mapping[str, float], steps: int) -> str:
    """What was seen in the last step, what it means, and what would help."""
    seen = rollouts.metrics()
    answers = [answer for group in rollouts.all for answer in group.rollouts]
    rates = ", ".join(f"{cell} {rate:.2f}" for cell, rate in sorted(pass_rates.items()))
    lines = [
        f"in {steps} steps no group of answers earned differently, so nothing could be learned; the run stops here",
        f"last step: {seen['n_answers']:,} answers, {seen['pass_rate']:.0%} right, {seen['format_rate']:.0%} in the"
        f" agreed form, {seen['truncated']:.0%} cut, {seen['answer_tokens']:.0f} tokens on average",
        f"pass rates so far: {rates}",
        f"what helps: {_remedy(seen)}",
        f"an answer: {answers[0].text[:SHOWN]!r}",
    ]
    return "\n  ".join(lines)


def _remedy(seen: Mapping[str, float]) -> str:
    if seen["pass_rate"] == 1:
        return "harder problems (rl.curriculum.difficulty, other tasks): every answer is right"
    if seen["truncated"] > 0.5:
        return "a higher rl.max_tokens, or a model that ends its answers (a cold start: sobre sft)"
    if seen["pass_rate"] == 0 and seen["format_rate"] < 0.5:
        return "a cold start (sobre sft) that teaches the form of an answer, and easier tasks such as copy and sums"
    if seen["pass_rate"] == 0:
        return "easier problems (tasks.names, rl.curriculum.difficulty), a larger rl.group_size, or a stronger model"
    return "a larger rl.group_size or a higher rl.temperature: each problem is always right or always wrong"
