"""Several processes, started by torchrun, learn what one process learns: losses, gradients, biases and weights.

One start of torchrun serves all cases of a number of processes, since a start takes longer than the training.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Found = Callable[[int, str], dict[str, Any]]
WORKER = Path(__file__).with_name("worker.py")
WHOLE = {"shards": 1}
SHARDS, SHARDS_2, SHARDS_1 = ({"shards": 2, "zero": zero} for zero in (3, 2, 1))
EXPERTS, BOTH = {"experts": 2}, {"experts": 2, "shards": 2}
TWO = {
    "pretrain": {"layout": WHOLE},
    "pretrain adamw": {"layout": WHOLE, "optim": "adamw"},
    "sft": {"layout": WHOLE, "stage": "sft"},
    "rl": {"layout": WHOLE, "stage": "rl"},
    "pretrain float32": {"layout": WHOLE, "dtype": "float32"},
    "shards": {"layout": SHARDS},
    "shards adamw zero 2": {"layout": SHARDS_2, "optim": "adamw"},
    "shards zero 1": {"layout": SHARDS_1},
    "shards sft": {"layout": SHARDS, "stage": "sft"},
    "shards rl": {"layout": SHARDS, "stage": "rl"},
    "experts": {"layout": EXPERTS},
    "experts sft, each token visits one process": {"layout": EXPERTS, "stage": "sft", "groups": 2},
    "experts shards": {"layout": BOTH},
    "experts shards adamw": {"layout": BOTH, "optim": "adamw"},
    "experts shards rl": {"layout": BOTH, "stage": "rl"},
    "experts shards float32": {"layout": BOTH, "dtype": "float32"},
    "whole, saved, then experts shards": {"layout": WHOLE, "then": BOTH},
    "experts shards, saved, then shards": {"layout": BOTH, "then": SHARDS, "optim": "adamw"},
    "shards, saved, then whole": {"layout": SHARDS, "then": WHOLE},
}


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, torchrun: Callable[..., str]
) -> Callable[[int, str], dict[str, Any]]:
    """(number of processes, case) -> how far the processes are from one process."""
    results: dict[int, dict[str, Any]] = {}

    def of(n_processes: int, case: str) -> dict[str, Any]:
        if n_processes not in results:
            folder = tmp_path_factory.mktemp("equal")
            (folder / "cases.json").write_text(json.dumps({2: TWO}[n_processes]))
            torchrun(n_processes, str(WORKER), str(folder / "cases.json"), str(folder / "found.json"))
            results[n_processes] = json.loads((folder / "found.json").read_text())
        return results[n_processes][case]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("case", TWO)
def test_two_processes_learn_what_one_learns(case: str, found: Found) -> None:
    gap = found(2, case)
    assert gap["moved"] > 1e-3
    assert gap["exported"] == 0
    if TWO[case].get("dtype") != "float32":
        assert max(gap["losses"], gap["norms"], gap["weights"]) < 1e-9, gap
    else:
        assert gap["losses"] * gap["first_loss"] < 1e-4, gap
