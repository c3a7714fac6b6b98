"""Signs that a reward was cheated, not given, or lost in chance: sentences for the report, from a run's metric lines.

What a recipe wants is right answers; what it pays for is right answers, form, language and nearness. A model that finds
the rest easier raises its reward and answers worse. Beginning and end are compared, a fifth of the steps each.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

Line = Mapping[str, Any]
RISE = 0.02
"""Of the reward beside accuracy, per answer, that counts as a rise."""
FALL = 0.03
"""Of the share of right answers that counts as a fall."""
HARDER = 0.2
"""Levels by which the problems may have grown harder before a fall says nothing."""
CUT = 0.5
"""Share of answers that met the limit and still leaves something to learn from."""
FAINT = 0.03
"""Share of a step's gradient that is the same in all steps, below which reinforcement learning was seen to gain nothing
at any rate that moves a model (docs/lab/log.md, 2026-11-28: 0.016 loses, 0.028 holds, 0.35 climbs)."""
BEGUN = 10
"""Steps that the optimizer's memory needs until a share so small can be told from none; its first words are chance."""


def signs(lines: Sequence[Line], stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Warnings about the stages of reinforcement learning; `stages` are those of report.json, in order."""
    rewarded: dict[str, list[Line]] = {}
    for line in lines:
        if line.get("reward") is not None:
            rewarded.setdefault(line["stage"], []).append(line)
    found = [(name, text) for name, steps in rewarded.items() for text in _of_stage(name, steps, stages)]
    return [f"{name}: {text}" if len(rewarded) > 1 else text for name, text in found]


def _of_stage(name: str, steps: Sequence[Line], stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = [*_cheated(steps), *_not_transferred(name, steps, stages)]
    unjudged = sum(line.get("unjudged") or 0 for line in steps)
    if unjudged:
        found.append(
            f"{unjudged:,} answers could not be judged, since the judge failed; nothing was learned from them."
        )
    slow = sum(line.get("slow_to_judge") or 0 for line in steps)
    if slow:
        found.append(f"{slow:,} answers took too long to compare with their reference and counted as wrong.")
    _, cut = _ends(steps, "truncated")
    if cut > CUT:
        found.append(f"At the end {cut:.0%} of the answers were cut at rl.max_tokens, and earned nothing.")
    _, empty = _ends(steps, "empty")
    if empty > CUT:
        found.append(f"At the end {empty:.0%} of the answers were empty.")
    return [*found, *_faint(steps)]


def _faint(steps: Sequence[Line]) -> list[str]:
    """Whether no fifth of the stage showed a gradient that its steps share."""
    seen = [line["signal"] for line in steps if line.get("signal") is not None]
    if len(seen) < 2 * BEGUN:
        return []
    seen = seen[BEGUN:]
    ends = [i * len(seen) // 5 for i in range(6)]
    share = max(sum(seen[a:b]) / (b - a) for a, b in pairwise(ends))
    if share >= FAINT:
        return []
    most = f"{share:.1%} at most" if share > 0 else "nothing that can be told from chance"
    return [
        f"Steps followed chance: of a step's gradient the steps shared {most}, so a gain or a loss here may be luck."
        " What would fit: a cold start that goes further, or easier problems (a right answer then says more), or more"
        " problems a step (n_prompts) and answers to each (group_size) at a lower lr_scale."
    ]


def _cheated(steps: Sequence[Line]) -> list[str]:
    before, after = _ends(steps, "pass_rate")
    earned = [{"side": line["reward"] - line["pass_rate"]} for line in steps]
    side_before, side_after = _ends(earned, "side")
    easier, harder = _ends(steps, "difficulty")
    if side_after - side_before < RISE or before - after < FALL or harder - easier > HARDER:
        return []
    what = [
        f"{name} from {start:.0%} to {end:.0%}"
        for name, field in (("form", "format_rate"), ("language", "language"))
        for start, end in (_ends(steps, field),)
        if end > start
    ]
    rose = f" ({', '.join(what)})" if what else ""
    return [
        f"The reward may be cheated: what it pays beside right answers rose from {side_before:.2f} to {side_after:.2f}"
        f"{rose}, while right answers fell from {before:.0%} to {after:.0%} on problems no harder."
    ]


def _not_transferred(name: str, steps: Sequence[Line], stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    judged = [(each, stage) for each, stage in stages.items() if "pass_at_1" in stage]
    at = next((i for i, (each, _) in enumerate(judged) if each == name), 0)
    start, end = _ends(steps, "reward")
    if not at or end - start < RISE:
        return []
    old, new = judged[at - 1][1], judged[at][1]
    if new["ci_high"] >= old["ci_low"]:
        return []
    return [
        f"The reward in training rose from {start:.2f} to {end:.2f}, while accuracy on the test fell from"
        f" {old['pass_at_1']:.1%} to {new['pass_at_1']:.1%}: what was rewarded is not what is tested."
    ]


def _ends(lines: Sequence[Line], field: str) -> tuple[float, float]:
    """Means over the first and the last fifth of the lines that have the field; 0 where none has."""
    values = [line[field] for line in lines if line.get(field) is not None]
    fifth = max(1, len(values) // 5)
    return (sum(values[:fifth]) / fifth, sum(values[-fifth:]) / fifth) if values else (0.0, 0.0)
