"""`sobre bench saves` in two processes: a divided model is saved while it learns, and read back as it was."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = ("--model.d-model", "32", "--model.n-layers", "2", "--model.vocab-size", "64", "--model.max-len", "64")


@pytest.mark.slow
def test_the_benchmark_of_saves_runs_in_two_processes_and_the_first_one_speaks(
    tmp_path: Path, torchrun: Callable[..., str]
) -> None:
    out = tmp_path / "saves.json"
    flags = ("--rounds", "2", "--warmup", "0", "--rows", "2", "--seq-len", "8", *SMALL)
    said = torchrun(2, "-m", "sobre", "bench", "saves", "--out", str(out), *flags)
    found = json.loads(out.read_text())
    assert found["settings"]["processes"] == 2
    assert found["check"] == [{"what": "tensors of a state read back that are others", "value": 0, "limit": 0}]
    assert len(found["rounds"]) == 2
    assert said.count("round 2 of 2") == 1
