"""FP8 beside bfloat16: what is compared, on which text, and that every arm learns from the same batches."""

from pathlib import Path

import pytest
import torch

import sobre
from sobre.bench import fp8_loss
from sobre.errors import ConfigError


def test_every_byte_of_the_package_is_in_one_window():
    windows = fp8_loss.text_windows(64)
    text = b"".join(path.read_bytes() for path in sorted(Path(sobre.__file__).parent.rglob("*.py")))
    whole = len(text) // 65 * 65
    assert windows.shape == (whole // 65, 65)
    assert torch.equal(
        windows.flatten().bincount(minlength=256), torch.tensor(list(text[:whole])).bincount(minlength=256)
    )
    assert bytes(windows[0].tolist()) in text


def test_arms_are_compared_over_the_later_half_and_the_last_tenth():
    losses = {name: [2.0] * 20 for name in fp8_loss.ARMS}
    losses["fp8"] = [9.0] * 10 + [2.0] * 8 + [3.0] * 2
    found = fp8_loss.figures(losses)
    assert found["fp8 over bfloat16, later half"] == pytest.approx(0.1)
    assert found["fp8 over bfloat16, last tenth"] == pytest.approx(0.5)
    assert found["bfloat16 nudged over bfloat16, later half"] == 0
    assert "bfloat16 over bfloat16, later half" not in found


def test_more_steps_than_text_are_refused_before_anything_is_trained():
    with pytest.raises(ConfigError, match="1000000 steps of 8 rows need 8000000 windows of text; there are"):
        fp8_loss.compare(fp8_loss.SMALL, 1_000_000, 8, torch.device("cpu"))


@pytest.mark.slow
def test_all_arms_begin_alike_and_part_by_their_rounding(monkeypatch):
    monkeypatch.setattr(fp8_loss, "EVERY", 2)
    losses, gaps = fp8_loss.compare(fp8_loss.SMALL, 2, 2, torch.device("cpu"))
    assert [len(gaps[precision]) for precision in ("fp8", "fp8-power-of-two")] == [1, 1]
    assert all(0 < abs(gap) < 0.01 for each in gaps.values() for gap in each)
    assert list(losses) == list(fp8_loss.ARMS)
    firsts = [each[0] for each in losses.values()]
    assert len(set(firsts)) == len(firsts)
    assert max(firsts) == pytest.approx(min(firsts), rel=0.01)
    assert all(0 < loss < 7 for each in losses.values() for loss in each)
