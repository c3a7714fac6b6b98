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


def test_the_questions_of_the_planner_are_shown_without_a_library():
    code = "import sys; from sobre.cli import main; main(['plan', '--help'])"
    code += "; print([name for name in sys.modules if name.split('.')[0] in ('pydantic', 'tyro', 'torch')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("sobre plan: what would this budget buy")
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("question", ["validate", "demo --budget 10m"])
@pytest.mark.slow
def test_a_plan_is_made_in_few_times_what_it_takes_to_import_the_libraries(question):
    """A ratio of the processor's clock, the better of two: the libraries need some 0.15 s on a machine at rest."""
    plan = ["-m", "sobre", "plan", *question.split()]
    ratios = (_computing_s(plan) / _computing_s(["-c", "from pydantic import TypeAdapter; import tyro"]) for _ in "12")
    assert any(ratio < 6 for ratio in ratios)


def _computing_s(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
