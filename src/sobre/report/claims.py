"""The sentences that page, model card and terminal share, so that they never disagree."""

from typing import Any

from sobre.ledger.prices import GRID_KG_PER_KWH, co2_kg
from sobre.report import words

Report = dict[str, Any]
LOST = ("unjudged", "cut", "wrong", "layout", "mixed", "unreadable", "long", "duplicate", "surplus")
"""What may be the matter with a teacher's answer (`distill.choose`)."""
STAGE_NAMES = {
    "start": "at the start",
    "pretrain": "base",
    "sft": "cold start",
    "rl": "reinforcement learning",
    "sft2": "second fine-tuning",
    "rl2": "second reinforcement learning",
    "dpo": "preferences",
    "distill": "distillation",
}
GENERATED = (
    "The text was generated: problems, worked steps and plain sentences in a few languages, written by a grammar from "
    "a seed. A model trained on it has never read anything that a person wrote. It solves problems of the kinds that "
    "it was taught; it knows nothing of the world, cannot hold a conversation, and what it says about anything else "
    "is noise in the shape of sentences."
)
BEGUN = (
    "What it could do before, it may have kept or lost: the examination asks for the tasks below and for nothing else. "
    "Like every model it makes things up; what it writes should not be relied upon without being checked."
)
SMALL = (
    "A model of this size makes things up and is sure of them. Nothing that it writes should be relied upon without "
    "being checked."
)


def stage_name(stage: str) -> str:
    """How people call a stage."""
    return STAGE_NAMES.get(stage, stage)


def stage_work(stage: str) -> str:
    """What was done in a stage, as in "after ..."."""
    return {"start": "the start", "pretrain": "pretraining", "sft": "the cold start"}.get(stage, stage_name(stage))


def headline(report: Report) -> str:
    """One sentence: what was spent, and what came of it."""
    model = report["model"] or {}
    size = f"a model of {words.number(model['total'])} parameters" if model.get("total") else "a model"
    spent = report["bill"]["total"]["wall_s"]
    opening = f"{words.duration(spent)} bought {size}" if spent else f"This run made {size}"
    judged = last_judged(report)
    if judged is not None:
        name, stage = judged
        who = ", whose student" if is_student(report, name) else " that"
        return f"{opening}{who} solves {words.percent(stage['pass_at_1'], 0)} of {stage['n']:,} test problems."
    if report["bits_per_byte"]:
        value = report["bits_per_byte"].get("all", min(report["bits_per_byte"].values()))
        return f"{opening} that reads unseen text at {value:.3f} bits per byte."
    return f"{opening}; it has not been examined."


def is_student(report: Report, stage: str) -> bool:
    """Whether a stage began a new model, taught by the run's own."""
    return (report["config"].get("start") or {}).get(stage) == "nothing"


def taught(report: Report) -> list[str]:
    """What became of a teacher's answers, a sentence for each stage that learned from some."""
    found = []
    for name, stage in report["stages"].items():
        counts = {k.removeprefix("answers_"): n for k, n in stage["metrics"].items() if k.startswith("answers_")}
        if not counts:
            continue
        lost = ", ".join(f"{n:,} {fate}" for fate, n in counts.items() if fate in LOST and n)
        work = stage_work(name)
        found.append(
            f"{work[0].upper()}{work[1:]} learned from {counts['kept']:,} of {counts['answers']:,} answers to"
            f" {counts['problems']:,} problems ({lost or 'none was lost'}), and from {counts['plain']:,} chats without"
            " a thought."
        )
    return found


def last_judged(report: Report) -> tuple[str, Report] | None:
    """The last stage that was examined on problems."""
    judged = [(name, stage) for name, stage in report["stages"].items() if "pass_at_1" in stage]
    return judged[-1] if judged else None


def unseen(report: Report) -> str:
    """Whether the test problems were really new, by the data's own count."""
    overlap = (report["data"] or {}).get("test_overlap") or {}
    text = "documents of the pretraining text hold one of these problems: such text"
    chats = {stage: found["test_overlap"] for stage, found in records(report).items() if "test_overlap" in found}
    said = []
    if overlap.get("count"):
        fate = "was removed" if overlap.get("removed") else "was kept"
        said.append(f"{overlap['count']:,} {text} {fate}")
    for stage, seen in chats.items():
        if seen["count"]:
            fate = "were removed" if seen["removed"] else "were kept"
            said.append(f"{seen['count']:,} chats of {stage_name(stage)} hold one of these problems: such chats {fate}")
    if said:
        return f"{'; '.join(said)} (named under “What it read”)."
    found = bool(overlap or chats)
    return "None of these problems was found in the text that the model was trained on." if found else ""


def records(report: Report) -> dict[str, Report]:
    """What was found in the user's own files, by stage."""
    stages: dict[str, Report] = (report["records"] or {}).get("stages") or {}
    return stages


def accuracy(share: Report) -> str:
    """87.1 % (84.9 - 89.0)."""
    value = share["pass_at_1"] if "pass_at_1" in share else share["value"]
    return f"{words.percent(value)} ({100 * share['ci_low']:.1f}–{100 * share['ci_high']:.1f})"


def gain(report: Report) -> str | None:
    """What the last stage added, in points, with the warning that belongs to it when the intervals overlap."""
    judged = [(name, stage) for name, stage in report["stages"].items() if "pass_at_1" in stage]
    if len(judged) < 2:
        return None
    (before, old), (after, new) = judged[-2:]
    points = 100 * (new["pass_at_1"] - old["pass_at_1"])
    work = stage_work(after)
    sentence = f"{work[0].upper()}{work[1:]} moved accuracy by {points:+.1f} points over {stage_work(before)}."
    if is_student(report, after):
        sentence = f"The student's accuracy is {points:+.1f} points over that of the model after {stage_work(before)}."
    if new["ci_low"] <= old["ci_high"] and old["ci_low"] <= new["ci_high"]:
        sentence += " The two 95 % intervals overlap: the difference may be chance."
    return sentence


def energy(row: Report) -> str:
    """The energy and how it is known."""
    if row["energy_j"] is None:
        return words.UNKNOWN
    return f"{words.energy(row['energy_j'])} ({row['energy_source']})"


def carbon(rows: list[Report]) -> str:
    """Energy of the rows together and what it gave off, with the factor; unknown as soon as one row's is."""
    joules = [row["energy_j"] for row in rows]
    if any(each is None for each in joules):
        return "Its energy is unknown, and so is the carbon dioxide: no counter was read for a part of it."
    known = ", ".join(dict.fromkeys(row["energy_source"] for row in rows))
    whole = sum(joules)
    grams = 1000 * co2_kg(whole)
    given_off = f"{grams / 1000:.3g} kg" if grams >= 1000 else f"{grams:.3g} g"
    return (
        f"In all {words.energy(whole)} ({known}): {given_off} of carbon dioxide at {GRID_KG_PER_KWH} kg for a"
        " kilowatt-hour, the world's mean grid of 2023."
    )


def prices(report: Report) -> list[str]:
    """Each price that the bill used, with its source and date."""
    found = []
    for price in report["bill"]["prices"]:
        if price["usd_per_h"] is None:
            found.append("The price of this machine is unknown, so no sum in dollars is given.")
        else:
            found.append(f"${price['usd_per_h']:g} per hour: {price['source'] or 'no source given'}.")
    return found
