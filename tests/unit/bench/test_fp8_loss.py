"""FP8 beside bfloat16: what is compared, on which text, and what counts as chance."""

from pathlib import Path

import pytest
import torch

import sobre
from sobre.bench import fp8_loss
from sobre.bench.fp8_loss import Arm, Run
from sobre.errors import ConfigError

CPU = torch.device("cpu")


def test_every_byte_of_the_package_is_in_one_window():
    windows = fp8_loss.text_windows(64)
    text = b"".join(path.read_bytes() for path in sorted(Path(sobre.__file__).parent.rglob("*.py")))
    whole = len(text) // 65 * 65
    assert windows.shape == (whole // 65, 65)
    assert torch.equal(
        windows.flatten().bincount(minlength=256), torch.tensor(list(text[:whole])).bincount(minlength=256)
    )
    assert bytes(windows[0].tolist()) in text


def test_a_difference_of_means_comes_with_its_standard_error_and_beside_chance():
    runs = [Run("bfloat16", r, loss, 3.0, {"fp8": gap}) for r, loss, gap in ((0, 1.9, 0.01), (1, 2.1, -0.03))]
    runs += [Run("fp8", r, loss, 3.3 + 0.3 * r, {}) for r, loss in enumerate((2.1, 2.2, 2.3))]
    found = fp8_loss.figures(runs)
    assert found["held_out: chance"] == pytest.approx(0.02**0.5 / 2)
    assert found["held_out: fp8"] == pytest.approx(2.2)
    assert found["held_out: fp8 over bfloat16"] == pytest.approx(0.1)
    error = (0.01 / 3 + 0.02 / 2) ** 0.5 / 2
    assert found["held_out: fp8 over bfloat16, standard error"] == pytest.approx(error)
    assert found["last_tenth: chance"] == 0
    assert found["last_tenth: fp8 over bfloat16"] == pytest.approx(0.2)
    assert found["same weights: fp8 over bfloat16, mean"] == pytest.approx(-0.01)
    assert found["same weights: fp8 over bfloat16, largest"] == -0.03
    assert not any("power of two" in name for name in found)


def test_more_steps_than_text_and_too_few_replicas_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="1000000 steps of 8 rows and 512 held out need 8000512 windows of text"):
        fp8_loss.train("fp8", 0, fp8_loss.SMALL, 1_000_000, 8, 1e-4, CPU)
    with pytest.raises(ConfigError, match="--replicas 1: two at least"):
        fp8_loss.main(["--replicas", "1", "--out", str(tmp_path / "f.json")])


def test_replicas_begin_nudged_in_their_own_way_which_is_the_same_in_every_precision():
    begins = {
        (name, r): Arm(name, r, fp8_loss.SMALL, 1e-4, CPU).model.norm.weight.detach()
        for name, r in (("bfloat16", 0), ("bfloat16", 1), ("fp8", 0))
    }
    assert torch.equal(begins["bfloat16", 0], begins["fp8", 0])
    gap = (begins["bfloat16", 0] - begins["bfloat16", 1]).abs().max()
    assert 0 < float(gap) < 10 * fp8_loss.NUDGE


@pytest.mark.slow
def test_every_arm_is_judged_on_text_that_it_has_not_read(monkeypatch):
    monkeypatch.setattr(fp8_loss, "HELD_OUT", 5)
    monkeypatch.setattr(fp8_loss, "TOGETHER", 2)
    windows, asked = fp8_loss.text_windows(64), []
    loss, step = Arm.loss, Arm.step
    monkeypatch.setattr(Arm, "loss", lambda arm, held, precision: asked.append(held) or loss(arm, held, precision))
    monkeypatch.setattr(Arm, "step", lambda arm, read, progress: asked.append(read) or step(arm, read, progress))
    runs = {name: fp8_loss.train(name, 0, fp8_loss.SMALL, 2, 2, 1e-4, CPU) for name in fp8_loss.ARMS}
    assert all(torch.equal(read, windows[:2]) or torch.equal(read, windows[2:4]) for read in asked if len(read) == 2)
    assert all(torch.equal(held, windows[-5:]) for held in asked if len(held) == 5)
    assert [len(part) for part in asked] == [2, 2, 5, 5, 5, 2, 2, 5, 2, 2, 5]
    assert list(runs["bfloat16"].same_weights) == ["fp8", "fp8-power-of-two"]
    assert all(0 < abs(gap) < 0.01 for gap in runs["bfloat16"].same_weights.values())
    losses = [run.held_out for run in runs.values()]
    assert len(set(losses)) == 3
    assert max(losses) == pytest.approx(min(losses), rel=0.01)
    assert all(4 < run.last_tenth < 7 for run in runs.values())
