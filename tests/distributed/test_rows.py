"""A launch line with more processes than a micro-batch has rows: all of them learn, and the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sobre.cli import main

RECIPE = ["run", "nano", "--stages", "pretrain", "--pretrain.steps", "2", "--pretrain.micro-tokens", "64"]
SMALL = ["--eval.n-problems", "0", "--eval.bits-documents", "1"]


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_share_what_was_a_row_at_a_time(
    tmp_path: Path, torchrun: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOBRE_TEST_ROWS", str(tmp_path))
    monkeypatch.setenv("SOBRE_NO_REEXEC", "1")  # this process is the tests'
    together, alone = tmp_path / "together", tmp_path / "alone"
    said = torchrun(2, str(Path(__file__).with_name("rows.py")), *RECIPE, *SMALL, "--out", str(together))
    assert "pretrain: forward passes of 128 tokens, where micro_tokens=64" in " ".join(said.split())
    for process in range(2):
        assert json.loads((tmp_path / f"process-{process}.json").read_text()) == [[64] * 4] * 2
    assert main([*RECIPE, *SMALL, "--out", str(alone)]) == 0
    assert losses(together) == pytest.approx(losses(alone), rel=1e-4)
