"""`sobre doctor` measures what a plan asks about, in seconds, and keeps it as the chip `this`."""

import json

import jsonschema
import pytest
import torch

from sobre.app.doctor import main
from sobre.errors import SandboxError
from sobre.plan.chips import chip
from sobre.runtime import device, machine
from sobre.runtime.device import product_rates
from sobre.runtime.machine import disk_bytes_per_s
from sobre.schemas import schema
from sobre.tasks import sandbox

CPU = torch.device("cpu")


def test_a_format_without_a_kernel_has_no_rate():
    assert product_rates(CPU, torch.bool, 0.0) == []


def test_the_disk_is_measured_and_left_as_it_was(tmp_path):
    assert disk_bytes_per_s(tmp_path) > 1e6
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_was_measured_is_a_document_and_a_chip(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema("doctor"))
    this, speed = chip("this"), document["speed"]
    assert this.measured
    assert this.peak("fp32") == pytest.approx(speed["fp32_flops"], rel=1e-3)
    assert this.bytes_per_s == pytest.approx(speed["bytes_per_s"], rel=1e-3)
    assert document["kept"] == str(tmp_path / "sobre" / "this.toml")
    try:
        expected = {"holds": True, "by": sandbox.mechanism()}
    except SandboxError as error:
        expected = {"holds": False, "by": str(error)}
    assert document["sandbox"] == expected


def test_a_machine_without_a_sandbox_is_told_why_code_is_refused(monkeypatch, capsys):
    def refuse():
        raise SandboxError("no user namespaces")

    found = device.Calibration("a chip", "cpu", 1, 1e9, 1e9, 1e9, 1e9, 1e9, 0.1)
    monkeypatch.setattr(device, "calibrate", lambda on: found)
    monkeypatch.setattr(machine, "narrow_rates", lambda on: machine.Narrow())
    monkeypatch.setattr(machine, "disk_bytes_per_s", lambda folder: 1e9)
    monkeypatch.setattr(sandbox, "mechanism", refuse)
    assert main(["--no-keep", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, schema("doctor"))
    assert document["sandbox"] == {"holds": False, "by": "no user namespaces"}
    assert main(["--no-keep"]) == 0
    assert "model-written code is refused: no user namespaces\n" in capsys.readouterr().out
