"""The rule that chooses the scored runs is older than the constants, and depends on what was published alone."""

from sobre.plan.runs import published

SCORED = [
    "deepseek-v3", "deepseek-v2", "llama-3.1-405b",
    "llama-2-7b", "llama-2-34b", "llama-2-70b", "llama-7b", "llama-13b", "llama-65b",
    "pythia-70m", "pythia-160m", "pythia-410m", "pythia-1b", "pythia-2.8b", "pythia-12b",
    "palm-540b", "gopher-280b", "bloomberg-50b",
]  # fmt: skip


def test_the_scored_rows_are_those_chosen_before_anything_was_fitted():
    assert [run.name for run in published() if not run.unscored] == SCORED


def test_every_other_row_says_why_it_is_not_scored():
    reasons = {run.name: run.unscored for run in published() if run.name not in SCORED}
    assert len(reasons) >= 18
    assert "15" not in reasons["llama-3.1-8b"]
    assert reasons["llama-3.1-8b"] == "tokens are a bound, not a count"
    assert reasons["gpt-3-175b"] == "hours are an assumption of another paper"
    assert "images" in reasons["llama-4-scout"]
    assert reasons["mpt-7b"] == "no primary source"


def test_a_row_holds_what_was_published():
    v3 = next(run for run in published() if run.name == "deepseek-v3")
    assert (v3.hours, v3.tokens, v3.chips, v3.year) == (2_664_000, 14.8e12, 2048, 2024)
    assert v3.hours / v3.tokens * 1e12 == 180_000
