"""A cell's process: its seconds, its memory, its end."""

import sys

import pytest

from sobre.bench import child
from sobre.errors import RunError


def test_memory_and_seconds_are_the_child_s(tmp_path):
    held = "held = bytearray(b'x') * (300 << 20); import time; time.sleep(0.2); print('done')"
    wall_s, peak_mib = child.run([sys.executable, "-c", held], tmp_path / "log.txt")
    assert wall_s > 0.2
    assert peak_mib > 300
    assert (tmp_path / "log.txt").read_text() == "done\n"


def test_a_failure_is_told_with_the_log_s_end(tmp_path):
    with pytest.raises(RunError, match=r"exit code 3:\nwhy"):
        child.run([sys.executable, "-c", "print('why'); raise SystemExit(3)"], tmp_path / "log.txt")
    with pytest.raises(RunError, match="exit code -9"):
        child.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path / "log.txt")
