"""A run that goes on in another number of processes is fed the tokens that it would have been fed.

Five starts of a run: a part of `make matrix`, which sets SOBRE_MATRIX=1.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sobre.train.state import saved_steps

from .conftest import environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.environ.get("SOBRE_MATRIX"), reason="takes minutes: make matrix"),
]
FED = Path(__file__).with_name("fed.py")
STEPS, SAVED = 6, 3


@pytest.mark.parametrize(("saved_in", "resumed_in"), [(2, (1, 4)), (1, (2,))])
def test_the_data_go_on_the_same_in_another_number_of_processes(
    saved_in: int,
    resumed_in: tuple[int, ...],
    tmp_path: Path,
    torchrun: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(n_processes: int, out: Path, *flags: str) -> list[str]:
        """Train in so many processes; the hashes of what was fed, by step."""
        told = tmp_path / f"{out.name}-{n_processes}.jsonl"
        monkeypatch.setenv("SOBRE_TEST_FED", str(told))
        command = [str(FED), "run", *flags, "--out", str(out)]
        if n_processes > 1:
            torchrun(n_processes, *command, "--parallel.shards", str(n_processes))
        else:
            subprocess.run([sys.executable, *command], env=environment(), check=True, capture_output=True, timeout=240)
        lines = [json.loads(line) for line in told.read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(lines[0]["step"], lines[0]["step"] + len(lines)))
        return [line["hash"] for line in lines]

    begun = tmp_path / "begun"
    new = ("nano", "--stages", "pretrain", "--pretrain.steps", str(STEPS), "--save.every-s", "0")
    whole = run(1, tmp_path / "whole", *new)
    assert len(set(whole)) == STEPS
    monkeypatch.setenv("SOBRE_TEST_STOP", str(SAVED))
    assert run(saved_in, begun, *new) == whole[:SAVED]
    assert saved_steps(begun / "state" / "pretrain")[-1] == SAVED
    monkeypatch.delenv("SOBRE_TEST_STOP")
    for n_processes in resumed_in:
        out = tmp_path / f"on-{n_processes}"
        shutil.copytree(begun, out)
        assert run(n_processes, out, "--resume") == whole[SAVED:]
