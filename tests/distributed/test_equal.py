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
TWO = {
    "pretrain": {"stage": "pretrain", "dtype": "float64"},
    "pretrain adamw": {"stage": "pretrain", "dtype": "float64", "optim": "adamw"},
    "sft": {"stage": "sft", "dtype": "float64"},
    "rl": {"stage": "rl", "dtype": "float64"},
    "pretrain float32": {"stage": "pretrain", "dtype": "float32"},
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
    if TWO[case]["dtype"] == "float64":
        assert max(gap["losses"], gap["norms"], gap["weights"]) < 1e-9, gap
    else:
        assert gap["losses"] * gap["first_loss"] < 1e-4, gap
