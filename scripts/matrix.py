"""Every layout, stage and optimizer in 2 and 4 processes against one process: the table of docs/scaling.md.

Starts torchrun on this machine (gloo, CPU), trains the tiny model of tests/distributed/worker.py, and writes the
largest difference of losses, gradient norms and weights. Exits with 1 when one is larger than promised.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scaling.md"
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "copies": {},
        "shards 2": {"shards": 2},
        "shards 2, ZeRO 2": {"shards": 2, "zero": 2},
        "shards 2, ZeRO 1": {"shards": 2, "zero": 1},
        "experts 2": {"experts": 2},
        "shards 2, experts 2": {"shards": 2, "experts": 2},
        "tensor 2": {"tensor": 2},
        "context 2": {"context": 2},
        "context 2, shards 2, experts 2": {"context": 2, "shards": 2, "experts": 2},
        "pipeline 2": {"pipeline": 2},
        "pipeline 2, interleaved": {"pipeline": 2, "schedule": "interleaved"},
        "pipeline 2, zero-bubble": {"pipeline": 2, "schedule": "zero-bubble"},
        "pipeline 2, ZBV": {"pipeline": 2, "schedule": "zbv"},
        "pipeline 2, DualPipeV": {"pipeline": 2, "schedule": "dualpipev"},
    },
    4: {
        "copies": {},
        "shards 4": {"shards": 4},
        "shards 2 (hybrid)": {"shards": 2},
        "experts 4": {"experts": 4},
        "experts 2": {"experts": 2},
        "shards 4, experts 4": {"shards": 4, "experts": 4},
        "shards 4, experts 2": {"shards": 4, "experts": 2},
        "shards 2, experts 4": {"shards": 2, "experts": 4},
        "tensor 2": {"tensor": 2},
        "tensor 2, shards 2": {"tensor": 2, "shards": 2},
        "context 4": {"context": 4},
        "context 2, shards 4": {"context": 2, "shards": 4},
        "context 2, experts 4": {"context": 2, "experts": 4},
        "context 2, tensor 2": {"context": 2, "tensor": 2},
        "pipeline 4": {"pipeline": 4},
        "pipeline 2, shards 2": {"pipeline": 2, "shards": 2, "zero": 1},
        "pipeline 2, experts 2": {"pipeline": 2, "experts": 2},
        "pipeline 2, tensor 2": {"pipeline": 2, "tensor": 2},
        "pipeline 2, ZBV, shards 2": {"pipeline": 2, "schedule": "zbv", "shards": 2, "zero": 1},
        "pipeline 2, DualPipeV, experts 2": {"pipeline": 2, "schedule": "dualpipev", "experts": 2},
    },
}
COLUMNS: dict[str, dict[str, Any]] = {
    "pretraining, Muon": {},
    "pretraining, AdamW": {"optim": "adamw"},
    "fine-tuning": {"stage": "sft"},
    "RL": {"stage": "rl"},
    "float32, 20 steps": {"dtype": "float32"},
}
PROMISED = {"float64": 1e-9, "float32": 1e-4}


def is_refused(sizes: dict[str, Any], case: dict[str, Any]) -> bool:
    """Whether a run in this layout refuses the stage (`ParallelConfig.check_stages`)."""
    return bool({"pipeline", "context"} & sizes.keys()) and case.get("stage") == "rl"


def measured(n_processes: int) -> dict[str, dict[str, Any]]:
    """What the worker found, for each layout and column."""
    cases = {
        f"{layout}|{column}": {"layout": sizes, "dense": "tensor" in sizes, **case}
        for layout, sizes in LAYOUTS[n_processes].items()
        for column, case in COLUMNS.items()
        if not is_refused(sizes, case)
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cases.json").write_text(json.dumps(cases))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
        worker = str(ROOT / "tests" / "distributed" / "worker.py")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
        subprocess.run([*launcher, worker, f"{folder}/cases.json", f"{folder}/found.json"], env=environment, check=True)
        found: dict[str, dict[str, Any]] = json.loads((Path(folder) / "found.json").read_text())
    return found


def difference(gap: dict[str, Any], dtype: str) -> float:
    """Of everything, relative, in float64; of the losses, absolute, in float32."""
    if dtype == "float32":
        return float(gap["losses"] * gap["first_loss"])
    return float(max(gap["losses"], gap["norms"], gap["weights"]))


def main() -> int:
    """Measure, write the table, judge."""
    rows = ["| processes | layout | " + " | ".join(COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    worst = dict.fromkeys(PROMISED, 0.0)
    for n_processes, layouts in LAYOUTS.items():
        found = measured(n_processes)
        for layout in layouts:
            cells = []
            for column, case in COLUMNS.items():
                dtype = case.get("dtype", "float64")
                if is_refused(layouts[layout], case):
                    cells.append("refused")
                    continue
                gap = difference(found[f"{layout}|{column}"], dtype)
                cells.append(f"{gap:.0e}")
                worst[dtype] = max(worst[dtype], gap)
            rows.append(f"| {n_processes} | {layout} | " + " | ".join(cells) + " |")
    table = "\n".join(rows)
    print(table)
    text = PAGE.read_text(encoding="utf-8")
    new = re.sub(r"(<!-- make matrix -->\n).*?(<!-- end -->)", rf"\1\n{table}\n\n\2", text, flags=re.S)
    PAGE.write_text(new, encoding="utf-8")
    return int(any(worst[dtype] > promised for dtype, promised in PROMISED.items()))


if __name__ == "__main__":
    sys.exit(main())
