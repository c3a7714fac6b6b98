"""Every layout, stage and optimizer in 2 and 4 processes against one process: the table of docs/scaling.md.

Starts torchrun on this machine (gloo, CPU), trains the tiny model of tests/distributed/worker.py, and writes the
largest difference of losses, gradient norms and weights. Exits with 1 when one is larger than promised.

A row goes to the page as soon as it is measured, so the table can be made in pieces:

    scripts/matrix.py                              all rows
    scripts/matrix.py --missing                    those that the page does not have
    scripts/matrix.py "4 pipeline 4" "2 copies"    these
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

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
        "shards 2, ZeRO 2, experts 2": {"shards": 2, "zero": 2, "experts": 2},
        "shards 2, ZeRO 1, experts 2": {"shards": 2, "zero": 1, "experts": 2},
        "tensor 2": {"tensor": 2},
        "context 2": {"context": 2},
        "context 2, shards 2": {"context": 2, "shards": 2},
        "context 2, experts 2": {"context": 2, "experts": 2},
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
        "tensor 4": {"tensor": 4},
        "context 4": {"context": 4},
        "context 2, shards 4": {"context": 2, "shards": 4},
        "context 2, experts 4": {"context": 2, "experts": 4},
        "context 2, tensor 2": {"context": 2, "tensor": 2},
        "pipeline 4": {"pipeline": 4},
        "pipeline 2, shards 2": {"pipeline": 2, "shards": 2, "zero": 1},
        "pipeline 2, experts 2": {"pipeline": 2, "experts": 2},
        "pipeline 2, tensor 2": {"pipeline": 2, "tensor": 2},
        "pipeline 2, interleaved, shards 2": {"pipeline": 2, "schedule": "interleaved", "shards": 2, "zero": 1},
        "pipeline 2, zero-bubble, shards 2": {"pipeline": 2, "schedule": "zero-bubble", "shards": 2, "zero": 1},
        "pipeline 2, ZBV, shards 2": {"pipeline": 2, "schedule": "zbv", "shards": 2, "zero": 1},
        "pipeline 2, ZBV, experts 2": {"pipeline": 2, "schedule": "zbv", "experts": 2},
        "pipeline 2, DualPipeV, shards 2": {"pipeline": 2, "schedule": "dualpipev", "shards": 2, "zero": 1},
        "pipeline 2, DualPipeV, experts 2": {"pipeline": 2, "schedule": "dualpipev", "experts": 2},
    },
}
COLUMNS: dict[str, dict[str, Any]] = {
    "pretraining, Muon": {},
    "pretraining, AdamW": {"optim": "adamw"},
    "fine-tuning": {"stage": "sft"},
    "RL": {"stage": "rl"},
    "distillation": {"stage": "distill"},
    "float32, 20 steps": {"dtype": "float32"},
}
TABLE = re.compile(r"(<!-- make matrix -->\n)(.*?)(<!-- end -->)", re.S)
PROMISED = {"float64": 1e-9, "float32": 1e-4}


class Row(NamedTuple):
    """Example: Row(4, "pipeline 4")"""

    n_processes: int
    layout: str

    def __str__(self) -> str:
        return f"{self.n_processes} {self.layout}"


ROWS = [Row(n_processes, layout) for n_processes, layouts in LAYOUTS.items() for layout in layouts]


def measured(row: Row) -> dict[str, dict[str, Any]]:
    """What the worker found, for each column."""
    n_processes, sizes = row.n_processes, LAYOUTS[row.n_processes][row.layout]
    own = {"layout": sizes, "dense": "tensor" in sizes, "kv_heads": max(2, sizes.get("tensor", 1))}
    cases = {column: {**own, **case} for column, case in COLUMNS.items()}
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


def cells(row: Row) -> tuple[list[str], bool]:
    """The row's cells, measured now, and whether all are as small as promised."""
    found, kept = measured(row), True
    shown = []
    for column, case in COLUMNS.items():
        dtype = case.get("dtype", "float64")
        gap = difference(found[column], dtype)
        shown.append(f"{gap:.0e}")
        kept &= gap <= PROMISED[dtype]
    return shown, kept


def read_table(page: str) -> dict[Row, list[str]]:
    """The rows that the page has."""
    match = TABLE.search(page)
    assert match is not None, f"{PAGE} has no place for the table"
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in match[2].splitlines() if "|" in line]
    return {Row(int(line[0]), line[1]): line[2:] for line in lines if line[0].isdigit()}


def with_table(page: str, table: dict[Row, list[str]]) -> str:
    """The page with these rows, in the order of the layouts; those of layouts that are no more are left out."""
    lines = ["| processes | layout | " + " | ".join(COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    lines += [f"| {row.n_processes} | {row.layout} | " + " | ".join(table[row]) + " |" for row in ROWS if row in table]
    text = "\n".join(lines)
    return TABLE.sub(lambda match: f"{match[1]}\n{text}\n\n{match[3]}", page)


def main(argv: list[str]) -> int:
    """Measure, write each row, judge."""
    names = {str(row): row for row in ROWS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="processes and layout, as the table has them")
    parser.add_argument("--missing", action="store_true", help="only rows that the page does not have")
    asked = parser.parse_args(argv)
    if unknown := [name for name in asked.rows if name not in names]:
        parser.error(f"no row {unknown[0]!r}; there are: {', '.join(names)}")
    rows = [names[name] for name in asked.rows] or ROWS
    if asked.missing:
        there = read_table(PAGE.read_text(encoding="utf-8"))
        rows = [row for row in rows if row not in there]
    kept = True
    for row in rows:
        shown, is_small = cells(row)
        kept &= is_small
        print(f"| {row.n_processes} | {row.layout} | " + " | ".join(shown) + " |", flush=True)
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_table(page, {**read_table(page), row: shown}), encoding="utf-8")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
