"""The benchmark of loading: both sides read the same folder, what is loaded is checked, and slow is told from fast."""

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import torch

from sobre.bench import load
from sobre.bench.config import LoadBench
from sobre.bench.timing import Timing
from sobre.errors import RunError
from sobre.models.checkpoint import load_model
from sobre.models.config import ModelConfig
from sobre.plan.count import params
from sobre.schemas import schema


@pytest.fixture
def tiny(nano_config: ModelConfig) -> LoadBench:
    return LoadBench(model=nano_config, rounds=2, warmup=1)


def test_the_default_is_two_gigabytes_in_bfloat16():
    assert 2e9 < 2 * params(LoadBench().model).total < 2.2e9


def test_a_result_follows_the_schema_and_names_the_limit(tiny: LoadBench, monkeypatch: pytest.MonkeyPatch):
    turns: list[str] = []

    def turn(side: str, folder: Path, threads: int) -> Timing:
        turns.append(side)
        return Timing(1.2 if side == "sobre" else 1.0, 1.0)

    monkeypatch.setattr(load, "_turn", turn)
    document = load.bench(tiny, lambda line: None).document()
    jsonschema.validate(document, schema("bench"))
    (found,) = document["ratios"]
    assert found["median"] == pytest.approx(1 / 1.2)
    assert found["target"] == pytest.approx(1 / 1.5)
    assert turns == ["readinto", "sobre", "sobre", "readinto", "readinto", "sobre"]
    assert document["check"][0]["value"] == 0


def test_both_sides_can_be_measured_and_a_process_that_fails_is_named(tiny: LoadBench, tmp_path: Path, monkeypatch):
    load.write(tiny.model, 0, tmp_path)
    assert load_model(tmp_path).embed.weight.dtype == torch.bfloat16
    assert all(load.measure(side, tmp_path).wall_s > 0 for side in load.SIDES)
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="out of memory")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RunError, match="the process that loads by sobre failed:\nout of memory"):
        load._turn("sobre", tmp_path, 1)


def test_the_forward_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]

    def takes(seconds: float) -> Callable[..., None]:
        return lambda *_: clock.__setitem__(0, clock[0] + seconds)

    monkeypatch.setattr(load.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(load.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(load, "load_model", takes(3.0))
    monkeypatch.setattr(load, "_forward", takes(8.0))
    assert load.measure("sobre", tmp_path) == Timing(3.0, 3.0)


def test_a_tensor_that_is_not_the_file_s_ends_the_benchmark(tiny: LoadBench, monkeypatch: pytest.MonkeyPatch):
    def spoilt(folder: Path):
        model = load_model(folder)
        with torch.no_grad():
            model.norm.weight[0] += 1
        return model

    monkeypatch.setattr(load, "load_model", spoilt)
    with pytest.raises(RunError, match="tensors loaded that are not those of the files: 1 exceeds 0"):
        load.bench(tiny, lambda line: None)


def test_settings_are_written_with_the_result(tiny: LoadBench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load, "_turn", lambda *_: Timing(1.0, 1.0))
    settings = load.bench(dataclasses.replace(tiny, seed=3), lambda line: None).document()["settings"]
    assert json.loads(json.dumps(settings))["seed"] == 3
