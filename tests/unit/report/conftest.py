"""A run folder that no run made: every file that the report reads, with figures that look like a demo's."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TASKS = ("arithmetic", "countdown", "sorting", "word_problem", "equation", "sequence")
LANGS = ("en", "fr", "zh")
PROMPTS = {
    "en": "Compute {a} + {b} - {c}.",
    "fr": "Calcule {a} + {b} - {c}.",
    "zh": "计算 {a} + {b} - {c}。",
}


def share(right: int, n: int) -> dict[str, float]:
    p = right / n
    half = 1.96 * math.sqrt(max(p * (1 - p), 0.01) / n)
    return {"n": n, "right": right, "value": p, "ci_low": max(0.0, p - half), "ci_high": min(1.0, p + half)}


def make_items(rate: float, n: int) -> list[dict[str, Any]]:
    items = []
    for i in range(n):
        rng = random.Random(i)
        a, b, c = (rng.randrange(100) for _ in range(3))
        right, truncated = random.Random(f"{i} {rate}").random() < rate, i % 37 == 36
        answer = a + b - c if right else a + b - c + 10
        thought = f"{a} + {b} = {a + b}\n{a + b} - {c} = {answer}\ncheck: {answer} + {c} = {a + b} <b>&</b>"
        lang = LANGS[i % 3]
        items.append(
            {
                "task": TASKS[i // 3 % len(TASKS)],
                "lang": lang,
                "difficulty": 3,
                "prompt": PROMPTS[lang].format(a=a, b=b, c=c),
                "answer": str(a + b - c),
                "completion": thought if truncated else f"{thought}\n</think>\n<answer>{answer}</answer>",
                "right": right and not truncated,
                "formatted": not truncated,
                "length": 40 + len(thought) // 2,
                "truncated": truncated,
            }
        )
    return items


def make_eval(rate: float, bits: float, n: int = 360) -> dict[str, Any]:
    items = make_items(rate, n)

    def count(chosen: list[dict[str, Any]], flag: str) -> dict[str, float]:
        return share(sum(item[flag] for item in chosen), max(1, len(chosen)))

    overall = count(items, "right")
    return {
        "schema": 1,
        "n": n,
        "pass_at_1": overall["value"],
        "ci_low": overall["ci_low"],
        "ci_high": overall["ci_high"],
        "by_task": {t: count([i for i in items if i["task"] == t], "right") for t in TASKS},
        "by_lang": {g: count([i for i in items if i["lang"] == g], "right") for g in LANGS},
        "format_rate": count(items, "formatted"),
        "pass_at_1_formatted": count([i for i in items if i["formatted"]], "right"),
        "sampled": {
            "k": 4,
            "temperature": 0.8,
            "top_p": 0.95,
            "majority_at_k": share(int(rate * 100), 100),
            "pass_at_k": {str(k): {"value": min(1, rate + k / 40), "ci_low": rate, "ci_high": 1.0} for k in (1, 2, 4)},
        },
        "mean_length": sum(i["length"] for i in items) / n,
        "truncated": count(items, "truncated"),
        "items": items,
        "bits_per_byte": {
            g: {"value": bits + 0.1 * i, "bits": 8e5, "bytes": 400_000, "tokens": 120_000, "documents": 40}
            for i, g in enumerate((*LANGS, "all"))
        },
        "baselines": {"xz -9": 2.27, "5-gram, bytes": 2.1, "5-gram, this model's tokens": 1.74},
    }


def make_metrics(stage: str, n: int, start_s: float, stop_s: float, n_experts: int = 16) -> list[dict[str, Any]]:
    rng = random.Random(stage)
    lines = []
    for step in range(n):
        x = step / (n - 1)
        line: dict[str, Any] = {
            "schema": 1,
            "stage": stage,
            "step": step,
            "time_s": start_s + x * (stop_s - start_s),
            "used": start_s + x * (stop_s - start_s),
            "tokens": 8192 * (step + 1),
            "flops": 1.4e11 * (step + 1),
            "loss": {"pretrain": 1.1, "sft": 0.25, "rl": 0.0}[stage] + 6 * math.exp(-9 * x) + rng.gauss(0, 0.04),
            "lr": 0.02 * (1 - x),
            "grad_norm": 1.0,
            "tokens_per_s": 9000 + rng.gauss(0, 300),
        }
        if stage == "rl":
            line |= {
                "reward": 0.6 + 0.5 * x + rng.gauss(0, 0.05),
                "pass_rate": min(0.95, 0.45 + 0.2 * x + rng.gauss(0, 0.06)),
                "format_rate": 0.97,
                "answer_tokens": 60 + 20 * x + rng.gauss(0, 2),
                "checks": 1 + x,
                "difficulty": 1.5 + 2 * x,
                "truncated": 0.01,
                "flat_groups": rng.randrange(5),
                "signal": None if step == 0 else 0.3 * (1 - x) + rng.gauss(0, 0.01),
                "logp_gap_mean": 0.004 + rng.random() * 0.002,
                "logp_gap_max": 0.3,
                "routes_differ": 0.006 + rng.random() * 0.002,
            }
        elif step % 4 == 0:
            spread = 1.2 * math.exp(-4 * x) + 0.12
            loads = [[int(512 * math.exp(rng.gauss(0, spread))) for _ in range(n_experts)] for _ in range(3)]
            line |= {"load_LE": loads, "max_violation": 0.4}
        lines.append(line)
    return lines


def make_ledger() -> list[dict[str, Any]]:
    spent = {"start": 9.1, "data": 14.2, "pretrain": 118.0, "sft": 136.5, "rl": 121.9, "eval:rl": 16.8, "report": 2.4}
    busy = {"pretrain": 2.4e13, "sft": 2.9e13, "rl": 1.9e13, "eval:rl": 9e11}
    return [
        {
            "schema": 1,
            "stage": stage,
            "step_from": 0,
            "step_to": 100,
            "wall_s": seconds,
            "device_s": seconds,
            "tokens": int(busy.get(stage, 0) / 1.9e7),
            "flops": busy.get(stage, 0.0),
            "share_of_peak": busy[stage] / seconds / 7e11 if stage in busy else None,
            "energy_j": None,
            "energy_source": "unknown",
            "cost_usd": seconds / 3600 * 0.096,
            "price_usd_per_h": 0.096,
            "price_source": "list price of a rented 2-core machine, 2026-11-01",
            "wasted_s": 8.3 if stage == "rl" else 0.0,
        }
        for stage, seconds in spent.items()
    ]


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def write_run(folder: Path, *, stages: tuple[str, ...] = ("pretrain", "sft", "rl")) -> Path:
    recipe = {
        "name": "demo",
        "seed": 0,
        "stages": list(stages),
        "budget": {"amount": "7m"},
        "model": {"d_model": 256, "n_layers": 4, "attention": {"kind": "mla"}, "ffn": {"kind": "moe"}},
    }
    plan = {
        "budget": {"text": "7m", "kind": "seconds", "amount": 420.0},
        "model": recipe["model"],
        "params": {"total": 3_412_480, "active": 912_384},
        "stages": {s: {"seconds": 120.0, "tokens": 1_200_000} for s in stages},
        "notes": ["Training was calibrated at 640 GFLOP/s; the plan keeps 18 % for start, evaluation and report."],
        "runner_up": "a larger one, 1.4M active of 6.1M: 5 layers of 256, MLA, 2 of 16 experts of 128",
    }
    data = {
        "generated": True,
        "documents": 61_200,
        "bytes": 21_004_118,
        "by_language": {"en": 7e6, "fr": 7e6, "zh": 7e6},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in {
        "config.json": {"schema": 1, "kind": "run", "recipe": recipe},
        "environment.json": {
            "cpu": "a processor with 2 cores",
            "python": "3.11.9",
            "torch": "2.13.0",
            "commit": "0123abc",
        },
        "plan.json": plan,
        "data.json": data,
    }.items():
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    times = {"pretrain": (23.0, 141.0), "sft": (147.0, 283.0), "rl": (289.0, 411.0)}
    metrics = [line for s in stages for line in make_metrics(s, 90 if s == "rl" else 300, *times[s])]
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(
        folder / "ledger.jsonl",
        [e for e in make_ledger() if e["stage"].removeprefix("eval:") not in {"sft", "rl"} - set(stages)],
    )
    event = {"schema": 1, "stage": "pretrain", "step": 40, "kind": "horizon", "data": {"total": 300}}
    write_lines(folder / "state" / "events.jsonl", [event])
    (folder / "eval").mkdir(exist_ok=True)
    rates = {"pretrain": (0.04, 1.9), "sft": (0.62, 1.95), "rl": (0.87, 1.96)}
    for stage in stages:
        (folder / "eval" / f"{stage}.json").write_text(json.dumps(make_eval(*rates[stage])), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole demo run, not yet reported."""
    return write_run(tmp_path_factory.mktemp("run") / "demo")


@pytest.fixture(scope="session")
def new_run() -> Callable[..., Path]:
    """Writes a run folder: new_run(folder, stages=(...))."""
    return write_run


@pytest.fixture(scope="session")
def new_eval() -> Callable[..., dict[str, Any]]:
    """An examination: new_eval(share right, bits per byte)."""
    return make_eval
