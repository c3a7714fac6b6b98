"""An engine as a process of ours: it is watched, and nothing of it is left at the end."""

import os
import signal
import time

import pytest

from sobre.errors import RunError
from sobre.serve import process
from sobre.serve.process import EngineProcess

STUBBORN = """trap "" TERM
(trap "" TERM; echo $$ > {0}/parent; exec sleep 1000) & echo $! > {0}/child
while :; do sleep 0.1; done"""


def alive(pid):
    """Whether a process of this number runs; one that has ended and that nobody has asked about does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_one_that_does_not_end_when_asked_is_killed_with_what_it_started(tmp_path, eventually, monkeypatch):
    monkeypatch.setattr(process, "STOP_S", 0.2)
    said, files = [], [tmp_path / name for name in ("parent", "child")]
    before = signal.getsignal(signal.SIGTERM)
    with EngineProcess(["sh", "-c", STUBBORN.format(tmp_path)], said.append) as running:
        assert eventually(lambda: all(path.exists() and path.read_text().strip() for path in files))
        assert running.code is None
        assert signal.getsignal(signal.SIGTERM) is not before
    assert running.code == -signal.SIGKILL
    child = int(files[1].read_text())
    assert eventually(lambda: not alive(child))
    assert said[-1] == "the engine did not end within 0.2 s and is killed"
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_that_ends_by_itself_tells_its_code_and_one_that_is_asked_ends():
    with EngineProcess(["sh", "-c", "exit 3"], print) as running:
        running._process.wait(30)
        assert running.code == 3
    with EngineProcess(["sleep", "1000"], print) as running:
        assert running.code is None
        assert os.getsid(running._process.pid) != os.getsid(0), "Ctrl-C in the terminal does not reach it"
    assert running.code == -signal.SIGTERM


def test_a_signal_to_leave_ends_it_too():
    running = EngineProcess(["sleep", "1000"], print)

    def signalled():
        with running:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

    with pytest.raises(SystemExit) as left:
        signalled()
    assert (left.value.code, running.code) == (0, -signal.SIGTERM)


def test_one_that_is_not_installed_is_named():
    with pytest.raises(RunError, match="vllm-that-is-not-here cannot be started .*is it installed here"):
        EngineProcess(["vllm-that-is-not-here"], print)
