"""Everything the report says, as one document: report.json. A pure function of the run folder's files."""

from typing import Any

from sobre.report.bill import bill
from sobre.report.curves import curves, load
from sobre.report.run_files import Record, RunFiles
from sobre.report.samples import samples
from sobre.report.signs import signs
from sobre.tasks.checking import n_checks

SCHEMA = 1
EVAL_FIELDS = (
    "n pass_at_1 ci_low ci_high by_task by_lang format_rate pass_at_1_formatted sampled mean_length truncated "
    "bits_per_byte baselines"
).split()


def facts(files: RunFiles) -> dict[str, Any]:
    """report.json as a dictionary (schemas/report.schema.json)."""
    drawn = curves(files.metrics, files.stages)
    spent = bill(files.ledger)
    stages = {name: _stage(files, name) for name in files.stages}
    bits = _last(files.evals, "bits_per_byte") or {}
    if len(bits) == 2:  # one source, and "all" of it
        bits = {name: score for name, score in bits.items() if name != "all"}
    document = {
        "schema": SCHEMA,
        "name": files.recipe.get("name", "run"),
        "seed": files.recipe.get("seed"),
        "budget": _budget(files, spent),
        "plan": files.plan,
        "model": _model(files),
        "stages": stages,
        "bits_per_byte": {name: _value(score) for name, score in bits.items()},
        "baselines": _last(files.evals, "baselines") or {},
        "bill": spent,
        "curves": drawn,
        "load": load(files.metrics),
        "samples": samples(files.evals),
        "data": files.data,
        "problems": files.problems,
        "records": files.records,
        "signs": signs(files.metrics, stages),
        "events": [{k: e.get(k) for k in ("stage", "step", "kind", "data")} for e in files.events],
        "environment": files.environment,
        "config": files.recipe,
    }
    return {**document, "missing": _missing(files, document)}


def _stage(files: RunFiles, name: str) -> Record:
    """What a stage did and how it was judged; fields of an examination are absent if there was none."""
    lines = [line for line in files.metrics if line["stage"] == name]
    metrics: Record = {"steps": len(lines)}
    if lines:
        tenth = max(1, len(lines) // 10)
        spent = [entry["wall_s"] for entry in files.ledger if entry["stage"] == name]
        metrics |= {
            "tokens": lines[-1].get("tokens"),
            "flops": lines[-1].get("flops"),
            "seconds": sum(spent) if spent else None,
            "loss_first_tenth": _mean_of(lines[:tenth], "loss"),
            "loss_last_tenth": _mean_of(lines[-tenth:], "loss"),
            "tokens_per_s": _mean_of(lines, "tokens_per_s"),
        }
        for field in ("reward", "pass_rate", "answer_tokens", "checks", "flat_groups", "signal"):
            if any(line.get(field) is not None for line in lines):
                metrics |= {f"{field}_first_tenth": _mean_of(lines[:tenth], field)}
                metrics |= {f"{field}_last_tenth": _mean_of(lines[-tenth:], field)}
        for field in ("logp_gap_max", "routes_differ"):
            seen = [line[field] for line in lines if line.get(field) is not None]
            metrics |= {f"{field}_worst": max(seen)} if seen else {}
    metrics |= {
        f"answers_{fate}": n for fate, n in files.answers.get(name, {}).items() if fate not in ("schema", "teacher")
    }
    result = files.evals.get(name, {})
    examined = {field: result[field] for field in EVAL_FIELDS if result.get(field) is not None}
    if items := result.get("items"):
        examined["mean_checks"] = sum(n_checks(item["completion"]) for item in items) / len(items)
    return {"metrics": metrics, **examined}


def _budget(files: RunFiles, spent: Record) -> Record:
    """What was allowed and what was used, in the budget's own unit."""
    asked = (files.plan or {}).get("budget") or {}
    if isinstance(files.recipe.get("budget"), dict):
        asked = {"text": files.recipe["budget"].get("amount"), **asked}
    kind = asked.get("kind", "seconds")
    return {
        "text": asked.get("text"),
        "kind": kind,
        "amount": asked.get("amount"),
        "used": spent["total"]["flops" if kind == "flops" else "wall_s"],
    }


def _model(files: RunFiles) -> Record | None:
    """Sizes: the planner's word first, the recipe's otherwise."""
    plan = files.plan or {}
    shape = plan.get("model") or files.recipe.get("model")
    if not isinstance(shape, dict):
        return None
    params = plan.get("params") or {}
    return {"total": params.get("total"), "active": params.get("active"), "shape": shape}


def _missing(files: RunFiles, document: Record) -> list[str]:
    """What a reader might look for and will not find, one sentence each."""
    found = []
    for name, stage in document["stages"].items():
        if name != "start" and not stage["metrics"]["steps"]:
            found.append(f"The stage {name} is in the recipe and left no metrics: it has not run.")
        elif "pass_at_1" not in stage and "bits_per_byte" not in stage:
            found.append(f"The stage {name} was not examined.")
    if not files.ledger:
        found.append("The ledger is empty, so there is no bill.")
    if "rl" not in document["stages"]:
        found.append("There was no reinforcement learning in this run.")
    if document["load"] is None:
        found.append("No expert load was recorded: a dense model has none.")
    if not document["samples"]["chosen"]:
        found.append("No answers were kept, so there are no samples.")
    absent = {"plan": files.plan, "environment": files.environment}
    if "pretrain" in document["stages"]:
        absent["data"] = files.data
    found += [f"{name}.json is not in the run folder." for name, value in absent.items() if value is None]
    return found


def _last(evals: dict[str, Record], field: str) -> Record | None:
    return next((result[field] for result in reversed(evals.values()) if result.get(field)), None)


def _value(score: Any) -> float:
    return float(score["value"]) if isinstance(score, dict) else float(score)


def _mean_of(lines: list[Record], field: str) -> float | None:
    values = [line[field] for line in lines if line.get(field) is not None]
    return sum(values) / len(values) if values else None
