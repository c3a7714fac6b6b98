"""A cell that is a whole run: `sobre run` in a process of its own, and what its report says in flat figures."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sobre.bench import child
from sobre.config.load import Layer, decode, to_json
from sobre.config.recipe import Recipe
from sobre.runtime.run_folder import model_folder

KEPT = ("config.json", "environment.json", "plan.json", "data.json", "report.json", "report.html", "eval")
"""What stays of a finished run's folder."""
SIZES = {"peak memory MiB": "peak_mib", "model MiB": "model_mib"}


def recipe_of(settings: Mapping[str, Any]) -> Recipe:
    """The recipe that a cell's settings are."""
    return decode(Recipe, [Layer("cell", dict(settings))])


def run_recipe(recipe: Recipe, place: Path) -> tuple[dict[str, Any], float]:
    """Run the recipe in `place`/run; return its report.json, with the largest memory and the size of the last model's
    folder (MiB), and the seconds of the whole process."""
    (place / "recipe.json").write_text(to_json(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "sobre", "run", str(place / "recipe.json"), "--out", str(place / "run")]
    wall_s, peak_mib = child.run(command, place / "log.txt")
    report: dict[str, Any] = json.loads((place / "run" / "report.json").read_text(encoding="utf-8"))
    model = model_folder(place / "run", recipe.stages[-1])
    sizes = [path.stat().st_size for path in model.rglob("*") if path.is_file()]
    return report | {"peak_mib": peak_mib, "model_mib": sum(sizes) / 2**20}, wall_s


def shrink(place: Path) -> None:
    """Drop models, states and shards of a finished run; report, config and evaluations stay."""
    for entry in (place / "run").iterdir():
        if entry.name in KEPT:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def figures(report: Mapping[str, Any], wall_s: float) -> dict[str, float]:
    """What a report says, flat: times, FLOPs, and per stage the accuracies and bits."""
    bill = report["bill"]
    trained = [row for row in bill["rows"] if row["stage"] in report["stages"]]
    found = {
        "wall_s": wall_s,
        "training share of the seconds": sum(row["wall_s"] for row in trained) / bill["total"]["wall_s"],
        "flops": bill["total"]["flops"],
    }
    found |= {name: report[key] for name, key in SIZES.items() if key in report}
    for name, key in (("usd", "cost_usd"), ("joules", "energy_j")):
        if bill["total"].get(key) is not None:
            found[name] = bill["total"][key]
    if report["budget"]["kind"] == "seconds":
        found["wall over budget"] = wall_s / report["budget"]["amount"]
    else:
        found["flops over budget"] = bill["total"]["flops"] / report["budget"]["amount"]
    for stage, said in report["stages"].items():
        found |= {f"{stage} {name}": value for name, value in _stage(said).items()}
    for name, value in report["baselines"].items():
        found[f"baseline {name}"] = value
    return found


def _stage(said: Mapping[str, Any]) -> dict[str, float]:
    metrics = said["metrics"]
    found = {name: metrics[name] for name in ("steps", "tokens", "flops", "seconds") if metrics.get(name) is not None}
    if "pass_at_1" in said:
        found["pass@1"] = said["pass_at_1"]
        found["problems"] = said["n"]
        found |= {f"pass@1 of {task}": score["value"] for task, score in said.get("by_task", {}).items()}
        found |= {f"pass@1 in {lang}": score["value"] for lang, score in said.get("by_lang", {}).items()}
        for name, label in (
            ("format_rate", "format rate"),
            ("pass_at_1_formatted", "pass@1 where the format is right"),
        ):
            if said.get(name):
                found[label] = said[name]["value"]
        if "mean_length" in said:
            found["answer tokens"] = said["mean_length"]
        sampled = said.get("sampled") or {}
        found |= {f"pass@{k}": score["value"] for k, score in sampled.get("pass_at_k", {}).items() if k != "1"}
    if "bits_per_byte" in said:
        found["bits per byte"] = said["bits_per_byte"]["all"]["value"]
        for source, score in said["bits_per_byte"].items():
            if source != "all":
                found[f"bits per byte of {source}"] = score["value"]
    return found
