"""Ctrl-C in a run: what was done is saved, and the line that goes on is shown and works."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RUN = ["run", "nano", "--pretrain.steps", "400", "--sft.steps", "2", "--rl.steps", "1"]


def start(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sobre", *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SOBRE_NO_REEXEC": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )


@pytest.mark.slow
@pytest.mark.parametrize("at", ["run nano in", "pretrain  1/"])
def test_ctrl_c_saves_and_shows_the_line_that_goes_on(at: str, tmp_path: Path):
    out = tmp_path / "out"
    process = start([*RUN, "--out", str(out)])
    said = next(line for line in process.stderr if line.startswith(at))
    process.send_signal(signal.SIGINT)
    said += process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert ("saved after step" in said) == at.startswith("pretrain")
    program, *argv = shlex.split(said.partition("to go on:\n")[2].splitlines()[0])
    assert (program, argv) == ("sobre", ["run", "--out", str(out), "--resume"])
    again = start(argv)
    said = again.communicate(timeout=120)[1]
    assert again.returncode == 0, said
    assert ("goes on after step" in said) == at.startswith("pretrain")
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if line["stage"] == "pretrain"] == list(range(400))
