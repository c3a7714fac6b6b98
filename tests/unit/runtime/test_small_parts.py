"""Seeds, allocator, energy, environment, device and console."""

import io
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from sobre.errors import ConfigError
from sobre.runtime.allocator import TUNABLES, reexec_once, wanted_environment
from sobre.runtime.console import Console, live_line
from sobre.runtime.energy import EnergyMeter
from sobre.runtime.environment import environment, source
from sobre.runtime.events import EventLog
from sobre.runtime.seed import key_u64
from sobre.schemas import names, schema

# --- seeds


def test_a_key_depends_on_every_part_its_type_and_its_place():
    keys = [
        key_u64(*parts)
        for parts in [(), (0,), ("0",), (0, 0), (1, 2), (2, 1), ("ab", "c"), ("a", "bc"), ("abc",), (12,), (1, "2")]
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)


def test_a_key_is_the_same_in_every_process():
    assert key_u64(7, "rl", 41) == 0xF63AAB56AFD48021


# --- allocator


def test_the_environment_gains_the_thresholds_and_keeps_the_rest():
    wanted = wanted_environment({"PATH": "/bin", "GLIBC_TUNABLES": "glibc.malloc.arena_max=2"})
    assert wanted["PATH"] == "/bin"
    assert wanted["GLIBC_TUNABLES"].split(":") == ["glibc.malloc.arena_max=2", *TUNABLES]


@pytest.mark.parametrize(
    "environ",
    [{"SOBRE_NO_REEXEC": "1"}, {"SOBRE_REEXECED": "1"}, {"GLIBC_TUNABLES": ":".join(TUNABLES)}]
    + [{"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1:glibc.malloc.trim_threshold=1"}],
)
def test_nothing_happens_when_unwanted_done_or_set_by_the_user(environ):
    assert wanted_environment(environ) is None
    reexec_once(environ, execve=lambda *call: pytest.fail("started again"))


def test_a_command_starts_again_once_with_its_own_arguments():
    code = (
        "import sys, os; from sobre.runtime.allocator import reexec_once; reexec_once();"
        "print(sys.argv[1:], os.environ.get('GLIBC_TUNABLES', ''))"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("SOBRE_NO_REEXEC", "GLIBC_TUNABLES", "SOBRE_REEXECED")}
    for environ, said, times in (
        (clean, 1, 1),
        ({**clean, "RANK": "1"}, 0, 1),  # of several processes, the first one speaks
        ({**clean, "SOBRE_NO_REEXEC": "1"}, 0, 0),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, "a b", "--x"], env=environ, capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("['a b', '--x']")
        if platform.libc_ver()[0] == "glibc":
            assert done.stderr.count("allocator:") == said
            assert done.stdout.count("mmap_threshold") == times


# --- energy


def rapl(folder, *microjoules, top=1_000_000):
    for number, value in enumerate(microjoules):
        for name in (f"intel-rapl:{number}", f"intel-rapl:{number}:0"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "energy_uj").write_text(f"{value}\n")
            (folder / name / "max_energy_range_uj").write_text(f"{top}\n")


def test_packages_are_summed_parts_are_not_and_a_counter_may_start_again(tmp_path):
    rapl(tmp_path, 100, 900_000)
    meter = EnergyMeter(powercap=tmp_path)
    rapl(tmp_path, 500_100, 100_000)
    energy = meter.read(1.0)
    assert energy.source == "measured"
    assert energy.joules == pytest.approx(0.5 + 0.2)
    assert meter.read(1.0).joules == 0.0


class FakeNvml:
    """Two accelerators whose counters, in millijoules, a test sets."""

    counters = [1_000, 5_000]

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        handle._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, value):
        value._obj.value = self.counters[handle.value - 1]
        return 0


def test_joules_of_accelerators_are_the_counters_differences_together(tmp_path):
    library = FakeNvml()
    meter = EnergyMeter(powercap=tmp_path, nvml=library)
    library.counters = [3_000, 5_500]
    energy = meter.read(1.0)
    assert (energy.joules, energy.source) == (pytest.approx(2.5), "measured")
    assert meter.read(1.0).joules == 0


def test_without_counters_energy_is_unknown_or_an_estimate_that_says_so(tmp_path):
    assert EnergyMeter(powercap=tmp_path / "none").read(10.0).source == "unknown"
    assert EnergyMeter(powercap=tmp_path / "none").read(10.0).joules is None
    estimate = EnergyMeter(watts=30.0, powercap=tmp_path / "none").read(10.0)
    assert (estimate.joules, estimate.source) == (300.0, "estimated")


# --- environment


def test_the_environment_follows_its_schema_and_names_no_host_user_or_path():
    document = json.loads(json.dumps(environment(threads=1)))
    Draft202012Validator(schema("environment")).validate(document)
    text = json.dumps(document)
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    if len(socket.gethostname()) > 3:
        assert socket.gethostname() not in text


def git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def test_the_source_is_known_in_its_own_clone_and_unknown_inside_another_s(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert source(package) == {"commit": None, "dirty": None}
    (tmp_path / "other.txt").write_text("of another project")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "-q", "-m", "another project")
    assert source(package) == {"commit": None, "dirty": None}
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    assert len(source(package)["commit"]) == 40
    assert source(package)["dirty"] is False
    (package / "__init__.py").write_text("changed")
    assert source(package)["dirty"] is True


# --- device


@pytest.mark.slow
def test_calibration_measures_something_plausible_quickly():
    device = pytest.importorskip("sobre.runtime.device")
    measured = device.calibrate(device.pick_device("cpu"), seconds=0.15)
    assert 1e8 < measured.fp32_flops <= measured.fp32_best < 1e15
    assert 1e7 < measured.bf16_flops <= measured.bf16_best
    assert 1e8 < measured.bytes_per_s < 1e13
    assert measured.dtype in ("float32", "bfloat16")
    assert measured.flops(measured.dtype) <= measured.peak(measured.dtype)
    json.dumps(measured.to_dict())


@pytest.mark.parametrize(
    ("fp32", "bf16", "dtype"), [(1e11, 1.1e11, "float32"), (1e11, 1.3e11, "bfloat16"), (1e11, 1e10, "float32")]
)
def test_training_computes_in_bfloat16_where_that_is_faster_by_more_than_its_casts(fp32, bf16, dtype):
    device = pytest.importorskip("sobre.runtime.device")
    speeds = {"fp32_flops": fp32, "bf16_flops": bf16, "fp32_best": 2 * fp32, "bf16_best": 2 * bf16}
    found = device.Calibration(name="", device="cpu", threads=1, bytes_per_s=1e10, seconds=1.0, **speeds)
    assert (found.dtype, found.to_dict()["dtype"]) == (dtype, dtype)
    assert (found.flops(dtype), found.peak(dtype)) == ((bf16, 2 * bf16) if dtype == "bfloat16" else (fp32, 2 * fp32))


def test_a_device_that_is_not_here_is_refused_with_those_that_are():
    device = pytest.importorskip("sobre.runtime.device")
    with pytest.raises(ConfigError, match="device='tpu' is not here; there are: auto,.* cpu"):
        device.pick_device("tpu")


# --- console


def test_the_live_line_gives_units_and_leaves_out_what_is_unknown():
    line = live_line(41, 400, loss=1.23, reward=None, tok_s=8100.4, usd=0.0021, left_s=97)
    assert line == "41/400  loss 1.230  8,100 tok/s  $0.0021  1 min 37 s left"


def test_off_a_terminal_lines_are_plain_and_few_but_the_last_step_is_said():
    stream = io.StringIO()
    with Console(stream=stream) as console:
        console.stage("sft", 3)
        for step in (1, 2, 3):
            console.update(step, 3, loss=0.5)
        console.say("sft: 3 steps [instead of 2]")
    assert stream.getvalue().splitlines() == [
        "sft  1/3  loss 0.500",
        "sft  3/3  loss 0.500",
        "sft: 3 steps [instead of 2]",
    ]
    assert "\x1b" not in stream.getvalue()


def test_the_console_speaks_on_standard_error_only_and_can_be_quiet(capsys):
    for quiet in (False, True):
        with Console(quiet=quiet) as console:
            console.stage("rl", 1)
            console.update(1, 1, reward=0.5)
            console.say("done")
        captured = capsys.readouterr()
        assert captured.out == ""
        assert ("reward 0.500" in captured.err) is not quiet


# --- schemas


@pytest.mark.slow
def test_every_schema_is_valid_and_versioned():
    for name in names():
        whole = schema(name)
        Draft202012Validator.check_schema(whole)
        forms = [whole["$defs"][form["$ref"].rsplit("/", 1)[1]] for form in whole.get("oneOf", [])] or [whole]
        if name != "usage":
            assert all(form["properties"]["schema"] == {"const": 1} for form in forms), name
    with pytest.raises(ConfigError, match="no schema 'nothing'; there are .*ledger"):
        schema("nothing")


def test_written_events_follow_the_schema(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.append("rl", 3, "curriculum", {"sort": 2})
    Draft202012Validator(schema("events")).validate(json.loads(log.path.read_text()))
