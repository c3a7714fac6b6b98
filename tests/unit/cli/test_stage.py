"""One stage on its own: it goes on from the model that it is given, and nothing else runs."""

import json

import pytest
import torch

from sobre.app import prepare, stage
from sobre.app import run as verb
from sobre.errors import ConfigError
from sobre.models.checkpoint import load_model
from sobre.runtime.device import Calibration
from sobre.tokenizer.tokenizer import Tokenizer

SHORT = ["--sft.steps", "2", "--rl.steps", "1"]


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch):
    speed = {"fp32_flops": 1e11, "bf16_flops": 1e10, "fp32_best": 1e11, "bf16_best": 1e10, "bytes_per_s": 1e10}
    monkeypatch.setattr(
        prepare, "calibrate", lambda device: Calibration(name="t", device="cpu", threads=1, seconds=0.0, **speed)
    )
    monkeypatch.setattr(prepare, "choose_threads", lambda: 1)
    monkeypatch.setattr(verb, "reexec_once", lambda: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "base"


@pytest.fixture(autouse=True)
def _pretrained(base, _no_measuring):
    if not base.exists():
        assert (
            stage.run_stage("pretrain", ["nano", "--out", str(base), "--pretrain.steps", "1", "--data.seq-len", "256"])
            == 0
        )


def test_a_stage_goes_on_from_the_model_that_it_is_given_and_examines_it_first(base, tmp_path):
    out = tmp_path / "out"
    assert (
        stage.run_stage(
            "sft", ["nano", "--model", str(base / "base"), "--out", str(out), "--sft.lr-scale", "0", *SHORT]
        )
        == 0
    )
    before, after = load_model(base / "base"), load_model(out / "sft")
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert Tokenizer.load(base / "base").encode("sort 3 1 2") == Tokenizer.load(out / "sft").encode("sort 3 1 2")
    report = json.loads((out / "report.json").read_text())
    assert list(report["stages"]) == ["start", "sft"]
    assert report["stages"]["start"]["n"] == report["stages"]["sft"]["n"] == 12
    assert not (out / "state" / "corpus").exists()


def test_reinforcement_learning_takes_any_model_folder(base, tmp_path):
    out = tmp_path / "out"
    assert stage.run_stage("rl", ["nano", "--model", str(base / "base"), "--out", str(out), *SHORT]) == 0
    assert load_model(out / "rl").cfg == load_model(base / "base").cfg


def test_a_stage_without_a_model_says_what_it_needs():
    with pytest.raises(ConfigError, match="goes on from a model: --model"):
        stage.run_stage("rl", ["nano"])


def test_a_context_too_short_for_the_tasks_is_refused_with_both_lengths(base, tmp_path):
    with pytest.raises(ConfigError, match=r"need \d.* tokens, and .* reads at most"):
        stage.run_stage(
            "sft", ["nano", "--model", str(base / "base"), "--out", str(tmp_path / "o"), "--rl.max-tokens", "9999"]
        )
