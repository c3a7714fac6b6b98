"""What the report reads: the files of a run folder, and nothing else.

    config.json          {"recipe": ...}: the resolved recipe
    environment.json     machine, versions, source
    plan.json            what the planner chose, and the runner-up
    data.json            what the text is and where it came from; "generated": true if we wrote it
    records.json         what was wrong, double or known among a stage's own chats, pairs or questions
    problems.json        the sets of problems read from files: how they were split, what was left out
    metrics.jsonl        one line a step (below)
    ledger.jsonl         what was spent
    state/events.jsonl   decisions taken from the clock
    answers/STAGE.json   the fates of a teacher's answers, where a stage learned from some
    eval/STAGE.json      an EvalResult, with "bits_per_byte" {source: {value, ...}} and "baselines" {name: value}

A metric line: stage, step, time_s (since the command's start, pauses between kill and resume left out), used (in the
budget's unit), tokens and flops (since the stage began), loss, lr, grad_norm, tokens_per_s; in reinforcement learning
reward, pass_rate, format_rate, language, empty, unjudged, slow_to_judge, answer_tokens, difficulty, truncated, groups,
flat_groups, signal (how much of their gradients the last steps share), clipped_low, clipped_high, logp_gap_mean and
logp_gap_max (sampler against trainer), routes_differ; of experts max_violation, dead_experts and, now and then, load_LE
(tokens per layer and expert) and bias_drift (how far the biases of a router are apart); of an engine that guesses ahead
draft_acceptance, the share of guesses that was right; where MTP is trained, now and then, mtp_acceptance, the share of
its first choices that is right; of several processes, now and then, slowest_process and slowest_ratio; save_s, how long
training waited for a saved state before this step.

Only config.json must be there: a run may have been stopped anywhere, and its report says what is missing.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sobre.errors import RunError
from sobre.schemas import lines

Record = dict[str, Any]
ORDER = ("start", "pretrain", "sft", "rl", "sft2", "rl2", "dpo", "distill")
"""Stages in the order of the story; others follow in the order in which they appear."""


@dataclass(frozen=True)
class RunFiles:
    """A run folder, read."""

    recipe: Record
    environment: Record | None
    plan: Record | None
    data: Record | None
    problems: Record | None
    records: Record | None
    metrics: list[Record]
    events: list[Record]
    ledger: list[Record]
    evals: dict[str, Record]
    answers: dict[str, Record]

    @property
    def stages(self) -> list[str]:
        """Stages that left a trace, in order; then those that the recipe asks for and that have not begun."""
        seen = [line["stage"] for line in self.metrics] + list(self.evals)
        wanted = [*dict.fromkeys([*seen, *self.recipe.get("stages", [])])]
        return sorted(wanted, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def read_run(folder: Path) -> RunFiles:
    """Read what is there. A torn last line is left out; any other damage is an error that names the file."""
    config = _json(folder / "config.json")
    if config is None:
        raise RunError(f"{folder} is no run folder: it has no config.json")
    found = {path.stem: _json(path) or {} for path in sorted((folder / "eval").glob("*.json"))}
    return RunFiles(
        recipe=config.get("recipe", config),
        environment=_json(folder / "environment.json"),
        plan=_json(folder / "plan.json"),
        data=_json(folder / "data.json"),
        problems=_json(folder / "problems.json"),
        records=_json(folder / "records.json"),
        metrics=lines.read(folder / "metrics.jsonl"),
        events=lines.read(folder / "state" / "events.jsonl"),
        ledger=lines.read(folder / "ledger.jsonl"),
        answers={path.stem: _json(path) or {} for path in sorted((folder / "answers").glob("*.json"))},
        evals={name: found[name] for name in sorted(found, key=lambda n: ORDER.index(n) if n in ORDER else 9)},
    )


def _json(path: Path) -> Record | None:
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise RunError(f"{path} holds a {type(document).__name__} where an object must stand")
    return document
