"""Planning and accounting are instant: they never import torch."""

import resource
import subprocess
import sys

import pytest


def test_plan_ledger_and_schemas_import_without_torch():
    code = (
        "import sys, sobre.plan.solve, sobre.plan.config, sobre.ledger.ledger, sobre.ledger.config;"
        "import sobre.schemas.lines, sobre.runtime.metrics, sobre.runtime.seed, sobre.runtime.clock;"
        "import sobre.runtime.run_folder, sobre.runtime.horizon, sobre.runtime.environment, sobre.runtime.allocator;"
        "print([name for name in sys.modules if name.split('.')[0] == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("question", ["validate", "demo --budget 10m"])
def test_a_plan_is_there_after_about_a_second_of_computing(question):
    """By the processor's clock of the whole process, the better of two: a busy machine makes it up to twice as slow."""
    assert _computing_s(question) < 1.2 or _computing_s(question) < 1.2


def _computing_s(question: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "sobre", "plan", *question.split()], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
