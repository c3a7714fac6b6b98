"""What a run's answers need is looked for before the run begins."""

import pytest

from sobre.app.sampling import check
from sobre.config.recipe import Recipe
from sobre.errors import SandboxError
from sobre.rl.config import RLConfig
from sobre.tasks import tools


def test_python_as_a_tool_is_refused_before_the_run_where_no_sandbox_holds(monkeypatch):
    def refuse():
        raise SandboxError("no namespaces here")

    monkeypatch.setattr(tools, "mechanism", refuse)
    rl = RLConfig(tools=("calculator", "python"))
    for stages in (("sft", "rl"), ("rl", "sft2", "rl2")):
        changed = {"rl2": rl} if "rl2" in stages else {"rl": rl}
        with pytest.raises(SandboxError, match="no namespaces here"):
            check(Recipe(stages=("pretrain", *stages), **changed))
    check(Recipe(stages=("pretrain", "sft", "rl"), rl=RLConfig(tools=("calculator",))))
    check(Recipe(stages=("pretrain", "sft"), rl=rl))  # a stage that is not run asks for nothing
