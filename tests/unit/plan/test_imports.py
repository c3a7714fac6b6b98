"""Planning and accounting are instant: they never import torch."""

import subprocess
import sys


def test_plan_ledger_and_schemas_import_without_torch():
    code = (
        "import sys, sobre.plan.solve, sobre.plan.config, sobre.ledger.ledger, sobre.ledger.config;"
        "import sobre.schemas.lines, sobre.runtime.metrics, sobre.runtime.seed, sobre.runtime.clock;"
        "import sobre.runtime.run_folder, sobre.runtime.horizon, sobre.runtime.environment, sobre.runtime.allocator;"
        "print([name for name in sys.modules if name.split('.')[0] == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
