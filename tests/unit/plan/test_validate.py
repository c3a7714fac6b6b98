"""The model of time against published runs: errors as promised, constants as fitted, nothing tuned by name."""

import json
import subprocess
from dataclasses import fields
from pathlib import Path

import jsonschema
import pytest

from sobre.plan.chips import chips
from sobre.plan.efficiency import FITTED, PRIOR, Efficiency
from sobre.plan.known import known
from sobre.plan.validate import validate
from sobre.schemas import schema

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def found():
    return validate()


def test_the_constants_in_use_are_those_of_the_fit(found):
    assert found.fitted.values() == pytest.approx(FITTED.values(), rel=1e-3)


def test_constants_are_few_and_none_is_named_after_a_model_or_a_chip():
    names = [field.name for field in fields(Efficiency)]
    assert len(names) <= 8
    assert not any(part in name for name in names for part in [*known(), *chips(), "gpu", "year"])


def test_constants_are_physical(found):
    assert all(0 < getattr(found.fitted, share) < 1 for share in ("matrix", "attention", "link", "overlap", "jitter"))
    assert found.fitted.traffic > 1
    assert found.fitted.elementwise > 1
    assert all(0.5 < a / b < 2 for a, b in zip(found.fitted.values(), PRIOR.values(), strict=True))


def test_left_out_errors_keep_their_promise(found):
    every, late = found.spread(left_out=True), found.spread(left_out=True, since=2024)
    assert every["n"] == 18
    assert every["median"] <= 0.20
    assert late["median"] <= 0.10
    assert every["worst"] <= 1.6


def test_deepseek_v3_is_predicted_from_other_papers_and_from_all(found):
    row = next(row for row in found.rows if row.run.name == "deepseek-v3")
    assert abs(found.without_deepseek) <= 0.10
    assert abs(row.error) <= 0.05
    assert abs(row.left_out) <= 0.10


def test_the_context_extension_is_predicted_without_being_fitted(found):
    row = next(row for row in found.rows if row.run.name == "deepseek-v3-context")
    assert row.left_out is None
    assert abs(row.error) <= 0.20


def test_what_is_no_pretraining_is_shown_with_its_error_or_as_the_part_that_it_is(found):
    beyond = {check.what.partition(",")[0]: check for check in reversed(found.beyond)}
    assert [beyond[name].published for name in ("deepseek-v3", "r1-zero", "r1")] == [2_788_000, 101_000, 41_000]
    assert all(abs(check.error) <= 0.15 for check in found.beyond if not check.is_part)
    part = next(check for check in found.beyond if check.is_part)
    assert part.error is None
    assert 5_000 < part.predicted < part.published
    assert part.predicted < beyond["r1"].predicted < 2 * part.published


def test_the_table_is_what_its_schema_says(found):
    jsonschema.validate(json.loads(json.dumps(found.to_dict())), schema("planning"))


def test_the_rule_of_the_rows_is_older_than_the_constants():
    def first(path: str) -> str:
        command = ["git", "-C", str(ROOT), "log", "--diff-filter=A", "--format=%H", "--", path]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    rule, constants = first("src/sobre/plan/runs.py"), first("src/sobre/plan/efficiency.py")
    if not rule or not constants:
        pytest.skip("no git history here")
    ancestor = ["git", "-C", str(ROOT), "merge-base", "--is-ancestor", rule, constants]
    assert rule != constants
    assert subprocess.run(ancestor).returncode == 0
