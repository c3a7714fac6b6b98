"""A trace holds one step and no other; where it cannot be written, the run says so."""

import json
from pathlib import Path

import pytest
import torch

from sobre.errors import RunError
from sobre.runtime.trace import StepTrace


def names(path: Path) -> list[str]:
    return [event["name"] for event in json.loads(path.read_text())["traceEvents"]]


def test_the_step_that_was_asked_for_is_traced_and_no_other(tmp_path: Path) -> None:
    trace, work = StepTrace(tmp_path / "trace", 3, 2), (torch.sin, torch.cos, torch.tan, torch.exp)
    trace.begin(0)
    for step, function in enumerate(work):
        function(torch.ones(4))
        trace.end()
        trace.begin(step + 1)
    found = names(tmp_path / "trace" / "process-3.json")
    assert found.count("aten::tan") == 1
    assert not {"aten::sin", "aten::cos", "aten::exp"} & set(found)


def test_nothing_is_written_unasked(tmp_path: Path) -> None:
    trace = StepTrace(tmp_path / "trace", 0, None)
    trace.begin(0)
    trace.end()
    assert not (tmp_path / "trace").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text("a file")
    trace = StepTrace(tmp_path / "trace", 0, 0)
    trace.begin(0)
    with pytest.raises(RunError, match=r"trace of a step could not be written to .*process-0.json"):
        trace.end()
