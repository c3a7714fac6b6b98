"""The page of a planned run: every picture is there, no script, no address outside, and the numbers are the plan's."""

import pytest

from sobre.app.plan import main

V3 = "--model deepseek-v3 --tokens 14.8T --chip h800 --chips 2048 --precision fp8 --tensor 1 --pipeline 16 --expert 64"


@pytest.mark.slow
def test_the_page_shows_money_memory_schedule_and_validation(tmp_path):
    out = tmp_path / "plan.html"
    assert main(["page", *V3.split(), "--schedule", "dualpipe", "--batch", "62.9M", "--out", str(out)]) == 0
    text = out.read_text()
    assert text.count("<svg") == 4
    assert "671,026,419,200" in text
    assert "usd, 26%" in text  # a bar of money says its unit
    assert "8 of its 16 stages" in text
    assert "<script" not in text
    assert "http" not in text.replace("http://www.w3.org", "")
