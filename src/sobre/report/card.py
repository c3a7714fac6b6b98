"""README.md of a model folder: what the model is, what it was trained on, how well it does, what it cost.

Written when the folder is saved, from what the run folder holds by then. It says what it cannot know.
"""

from pathlib import Path
from typing import Any

from sobre.report import claims, words
from sobre.report.facts import facts
from sobre.report.run_files import read_run

Report = dict[str, Any]


def model_card(run_dir: Path, stage: str) -> str:
    """The card of the model that `stage` left."""
    report = facts(read_run(run_dir))
    parts = [
        _front_matter(report),
        _opening(report, stage),
        _use(report, stage),
        _training(report, stage),
        _examination(report["stages"].get(stage, {}), claims.unseen(report)),
        _cost(report, stage),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(report: Report) -> str:
    """What the Hub reads."""
    langs = _languages(report)
    library = "sobre" if _memory(report) else "peft" if _rank(report) else "transformers"
    lines = ["---", f"library_name: {library}", "pipeline_tag: text-generation", "tags: [sobre]"]
    if langs:
        lines.append(f"language: [{', '.join(langs)}]")
    return "\n".join([*lines, "---"])


def _opening(report: Report, stage: str) -> str:
    model = report["model"] or {}
    shape = model.get("shape") or {}
    size = ""
    if model.get("total"):
        size = f" {words.number(model['total'])} parameters, {words.number(model['active'])} of them active per token."
    kinds = [str(shape[part]["kind"]).upper() for part in ("attention", "ffn") if isinstance(shape.get(part), dict)]
    build = f" {shape.get('n_layers')} layers of width {shape.get('d_model')}, {', '.join(kinds)}." if kinds else ""
    title = f"# {report['name']}, {claims.stage_name(stage)}"
    opening = f"{title}\n\n{_origin(report)}{size}{build}"
    memory = _memory(report)
    if not memory:
        return opening
    return (
        f"{opening}\n\nIt has **n-gram memory**: {memory['n_heads']} hashed tables of {memory['n_rows']:,} rows of"
        f" {memory['dim']} for each of {', '.join(f'{n}-grams' for n in memory['orders'])}, read before layers"
        f" {', '.join(map(str, memory['layers']))}. No engine but sobre reads them: transformers, vLLM, SGLang and"
        " llama.cpp refuse the folder."
    )


def _origin(report: Report) -> str:
    base = _base(report)
    if not base:
        return "A small language model trained from scratch."
    if rank := _rank(report):
        return f"Adapters (LoRA) of rank {rank} over {base}, whose own weights are not in this folder."
    return f"{base}, trained further."


def _base(report: Report) -> str:
    """The model that the run began with; "" when it began with nothing."""
    return str((report["config"].get("start") or {}).get("model") or "")


def _rank(report: Report) -> int:
    """Of the adapters that the run trained; 0 when it trained weights."""
    return int((report["config"].get("lora") or {}).get("rank") or 0)


def _memory(report: Report) -> dict[str, Any] | None:
    found: dict[str, Any] = ((report["model"] or {}).get("shape") or {}).get("memory") or {}
    return found if found.get("layers") else None


def _use(report: Report, stage: str) -> str:
    generated = bool((report["data"] or {}).get("generated"))
    limits = claims.BEGUN if _base(report) else claims.GENERATED if generated else claims.SMALL
    talk = (
        "It continues text and was not taught to answer: there is no chat in it."
        if stage == "pretrain"
        else "It answers in the chat template of the model that it began as."
        if _base(report)
        else "It thinks aloud between `<think>` and `</think>` and then answers; the chat template opens the thought."
    )
    return f"## What it can and cannot do\n\n{talk}\n\n{limits}"


def _training(report: Report, stage: str) -> str:
    lines = ["## Training", "", "| stage | steps | tokens | model FLOPs |", "|---|---|---|---|"]
    for name in _stages_until(report, stage):
        metrics = report["stages"][name]["metrics"]
        row = (words.number(metrics.get("tokens")), words.flops(metrics.get("flops")))
        lines.append(f"| {claims.stage_name(name)} | {metrics['steps']:,} | {row[0]} | {row[1]} |")
    data = report["data"] or {}
    train = data.get("train") or {}
    known = [
        (data.get("n_tokens") or data.get("tokens"), "tokens"),
        (train.get("documents"), "documents"),
        (train.get("size_bytes"), "bytes"),
    ]
    if any(value is not None for value, _ in known):
        lines += ["", f"The text: {', '.join(f'{words.number(v)} {unit}' for v, unit in known if v is not None)}."]
    return "\n".join(lines)


def _examination(result: Report, unseen: str) -> str:
    if "pass_at_1" not in result and not result.get("bits_per_byte"):
        return "## Examination\n\nThis model was not examined."
    lines = ["## Examination"]
    if "pass_at_1" in result:
        lines += [
            "",
            f"{claims.accuracy(result)} of {result['n']:,} test problems answered right: first answer, greedy, "
            f"95 % interval in brackets. {unseen}".rstrip(),
            "",
            "| | right |",
            "|---|---|",
        ]
        for group in ("by_task", "by_lang"):
            lines += [f"| {name} | {claims.accuracy(share)} |" for name, share in result.get(group, {}).items()]
    if result.get("bits_per_byte"):
        lines += ["", "| held-out text | bits per byte |", "|---|---|"]
        lines += [f"| {source} | {score['value']:.3f} |" for source, score in result["bits_per_byte"].items()]
    return "\n".join(lines)


def _cost(report: Report, stage: str) -> str:
    """The bill up to this stage; what the run spent on other stages is not this model's."""
    rows = report["bill"]["rows"]
    later = set(report["stages"]) - set(_stages_until(report, stage))
    rows = [row for row in rows if row["stage"].removeprefix("eval:") not in later]
    if not rows:
        return "## Cost\n\nUnknown: the ledger is empty."
    lines = ["## Cost", "", "| stage | time | model FLOPs | energy | cost |", "|---|---|---|---|---|"]
    total = sum(row["cost_usd"] or 0.0 for row in rows)
    for row in rows:
        time, arithmetic = words.duration(row["wall_s"]), words.flops(row["flops"])
        usd = words.usd_like(row["cost_usd"], total)
        lines.append(f"| {row['stage']} | {time} | {arithmetic} | {claims.energy(row)} | {usd} |")
    return "\n".join([*lines, "", claims.carbon(rows), "", *claims.prices(report)])


def _stages_until(report: Report, stage: str) -> list[str]:
    names = list(report["stages"])
    return names[: names.index(stage) + 1] if stage in names else names


def _languages(report: Report) -> list[str]:
    judged = claims.last_judged(report)
    return list(judged[1].get("by_lang", {})) if judged else []
