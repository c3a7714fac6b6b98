"""Saved states: whole or absent, and going on from one is the same as never having stopped."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Event, current_thread, main_thread
from time import sleep

import pytest
import torch
from safetensors.torch import load_file

import sobre.train.state as state_module
from sobre.errors import CheckpointError, RunError
from sobre.models.adapt import adapt
from sobre.models.config import LoraConfig
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.runtime.processes import Processes
from sobre.train.batch import from_samples
from sobre.train.losses import next_token
from sobre.train.resume import load_state
from sobre.train.state import Saving, save_state, saved_steps
from sobre.train.step import train_step

from .test_step import CFG, fresh, samples


def steps(model: Decoder, optimizer: Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        batch = from_samples(samples(9, 12, seed=step))
        train_step(model, optimizer, [batch], next_token, lr_scale=0.5, clip=1.0, mtp_weight=0.3)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.slow
def test_going_on_from_a_state_equals_never_having_stopped_bit_for_bit(kind, tmp_path: Path):
    def build() -> tuple[Decoder, Optimizer]:
        model, _ = fresh()
        names = dict(model.named_parameters())
        return model, Optimizer(names, roles(names), OptimConfig(kind=kind, warmup_steps=0))

    straight = build()
    steps(*straight, 0, 6)
    stopped = build()
    steps(*stopped, 0, 3)
    save_state(tmp_path, 3, *stopped, {"note": "here"}, keep=2)
    other = Decoder(CFG)
    other.init_weights(99)
    names = dict(other.named_parameters())
    resumed = other.train(), Optimizer(names, roles(names), OptimConfig(kind=kind, warmup_steps=0))
    assert load_state(tmp_path, *resumed) == {"step": 3, "note": "here"}
    steps(*resumed, 3, 6)
    for name, tensor in straight[0].state_dict().items():
        assert torch.equal(resumed[0].state_dict()[name], tensor), name


def test_a_state_of_adapters_holds_no_frozen_weight_and_goes_on_bit_for_bit(tmp_path: Path):
    def build(lora_seed: int) -> tuple[Decoder, Optimizer]:
        model, _ = fresh()
        adapt(model, LoraConfig(rank=2), seed=lora_seed)
        names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        return model, Optimizer(names, roles(names), OptimConfig())

    def go(model: Decoder, optimizer: Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            batch = from_samples(samples(9, 12, seed=step))
            train_step(model, optimizer, [batch], next_token, lr_scale=0.5, clip=1.0, rebalance=False)

    straight, stopped, resumed = build(1), build(1), build(99)
    go(*straight, 0, 4)
    go(*stopped, 0, 2)
    save_state(tmp_path, 2, *stopped, {}, keep=2)
    stored = load_file(tmp_path / "step-00000002" / "model.safetensors")
    assert all(".lora." in name or name.endswith(("bias_E", "classes_V")) for name in stored)
    load_state(tmp_path, *resumed)
    go(*resumed, 2, 4)
    for name, tensor in straight[0].state_dict().items():
        assert torch.equal(resumed[0].state_dict()[name], tensor), name
    with pytest.raises(CheckpointError, match="its weights are not the model"):
        load_state(tmp_path, *fresh())


def test_only_the_newest_states_are_kept_and_the_newest_is_loaded(tmp_path: Path):
    model, optimizer = fresh()
    for step in (1, 5, 12):
        save_state(tmp_path, step, model, optimizer, {}, keep=2)
    assert saved_steps(tmp_path) == [5, 12]
    meta = load_state(tmp_path, model, optimizer)
    assert meta is not None
    assert meta["step"] == 12


def test_a_half_written_state_is_passed_over(tmp_path: Path):
    model, optimizer = fresh()
    save_state(tmp_path, 4, model, optimizer, {}, keep=2)
    (tmp_path / "step-00000009.part").mkdir()
    assert saved_steps(tmp_path) == [4]
    save_state(tmp_path, 9, model, optimizer, {}, keep=2)
    assert saved_steps(tmp_path) == [4, 9]


def test_there_is_nothing_to_load_in_an_empty_folder(tmp_path: Path):
    assert load_state(tmp_path, *fresh()) is None


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "cut":
        data = data[:40]
    elif how == "one bit":
        data[-9] ^= 1
    file.write_bytes(data)
    if how == "gone":
        file.unlink()


@pytest.mark.parametrize("how", ["cut", "one bit", "gone"])
def test_a_damaged_state_is_named_and_passed_over_for_the_one_before(how: str, tmp_path: Path):
    model, optimizer = fresh()
    for step in (4, 8):
        save_state(tmp_path, step, model, optimizer, {}, keep=2)
    damage(tmp_path / "step-00000008" / "optimizer.safetensors", how)
    said: list[str] = []
    meta = load_state(tmp_path, model, optimizer, say=said.append)
    assert meta == {"step": 4}
    assert len(said) == 1
    assert "step-00000008 cannot be read: optimizer.safetensors" in said[0]
    damage(tmp_path / "step-00000004" / "model.safetensors", how)
    with pytest.raises(CheckpointError, match="step-00000004 cannot be read: .*no state is left to go on from"):
        load_state(tmp_path, model, optimizer)


def test_rotation_never_removes_the_last_good_state_for_a_damaged_newer_one(tmp_path: Path):
    model, optimizer = fresh()
    for step in (4, 8):
        save_state(tmp_path, step, model, optimizer, {}, keep=2)
    damage(tmp_path / "step-00000008" / "model.safetensors", "one bit")
    assert load_state(tmp_path, model, optimizer) == {"step": 4}
    save_state(tmp_path, 6, model, optimizer, {}, keep=1)
    assert saved_steps(tmp_path) == [6]
    assert load_state(tmp_path, model, optimizer) == {"step": 6}


def test_rotation_keeps_what_was_just_written_though_a_newer_state_lies_there(tmp_path: Path):
    model, optimizer = fresh()
    for step in (4, 8):
        save_state(tmp_path, step, model, optimizer, {}, keep=2)
    save_state(tmp_path, 6, model, optimizer, {}, keep=1)
    assert saved_steps(tmp_path) == [6, 8]


def test_a_state_that_was_passed_over_once_never_comes_back(tmp_path: Path):
    model, optimizer = fresh()
    for step in (4, 8):
        save_state(tmp_path, step, model, optimizer, {}, keep=2)
    file = tmp_path / "step-00000008" / "model.safetensors"
    whole = file.read_bytes()
    said: list[str] = []
    for time in (1, 2):  # unreadable for a moment, twice
        damage(file, "cut")
        assert load_state(tmp_path, model, optimizer, say=said.append) == {"step": 4}
        aside = tmp_path / f"step-00000008.passed-over-{time}"
        assert said[-1].endswith(f"its folder is {aside} from now on, and nothing reads it")
        (aside / "model.safetensors").write_bytes(whole)
        assert saved_steps(tmp_path) == [4]
        save_state(tmp_path, 5, model, optimizer, {}, keep=2)
        assert load_state(tmp_path, model, optimizer) == {"step": 5}
        shutil.rmtree(tmp_path / "step-00000005")
        save_state(tmp_path, 8, model, optimizer, {}, keep=2)


def test_where_no_state_is_good_none_is_renamed(tmp_path: Path):
    model, optimizer = fresh()
    save_state(tmp_path, 4, model, optimizer, {}, keep=2)
    damage(tmp_path / "step-00000004" / "meta.json", "cut")
    with pytest.raises(CheckpointError, match="no state is left to go on from"):
        load_state(tmp_path, model, optimizer)
    assert saved_steps(tmp_path) == [4]


def test_a_kill_while_a_state_takes_the_place_of_another_of_its_step_leaves_one_of_them(tmp_path: Path, monkeypatch):
    model, optimizer = fresh()
    folder, rename = tmp_path / "state", os.rename
    save_state(folder, 4, model, optimizer, {"written": 1}, keep=1)
    left: list[Path] = []

    def watched(source: Path, target: Path) -> None:
        rename(source, target)
        left.append(tmp_path / f"killed-{len(left)}")
        shutil.copytree(folder, left[-1])  # what a kill would leave at this moment

    monkeypatch.setattr("sobre.train.state.os.rename", watched)
    save_state(folder, 4, model, optimizer, {"written": 2}, keep=1)
    monkeypatch.undo()
    found = [load_state(killed, model, optimizer) for killed in left]
    assert found == [{"step": 4, "written": 1}, {"step": 4, "written": 2}]
    for killed in (folder, *left):
        save_state(killed, 5, model, optimizer, {}, keep=1)
        assert [path.name for path in killed.iterdir()] == ["step-00000005"]


def test_a_state_holds_the_numbers_of_its_moment_while_training_goes_on(tmp_path: Path, monkeypatch):
    model, optimizer = fresh()
    steps(model, optimizer, 0, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gate, write = Event(), state_module.save_file

    def slow(*args: object) -> None:
        assert gate.wait(20)
        write(*args)

    monkeypatch.setattr(state_module, "save_file", slow)
    saving = Saving(tmp_path, 1, model, optimizer, {}, keep=2)
    steps(model, optimizer, 1, 2)
    assert not saving.is_written()
    assert saved_steps(tmp_path) == []
    gate.set()
    saving.finish()
    other, other_optimizer = fresh()
    assert load_state(tmp_path, other, other_optimizer) == {"step": 1}
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    assert not torch.equal(model.embed.weight, other.embed.weight)


def test_training_waits_for_a_copy_alone_and_a_thread_agrees_and_publishes(tmp_path: Path):
    class Watched(Processes):
        def decide(self, choose):
            asked.append((current_thread() is main_thread(), choose))
            return super().decide(choose)

        def gather(self, value):
            asked.append((current_thread() is main_thread(), value))
            return super().gather(value)

    asked: list[tuple[bool, object]] = []
    model, optimizer = fresh()
    saving = Saving(tmp_path, 1, model, optimizer, {}, keep=2, processes=Watched())
    while not saving.is_written():
        sleep(0.01)
    assert saved_steps(tmp_path) == [1]  # before anybody waited for it
    saving.finish()
    assert [in_main for in_main, _ in asked] == [False] * 3


def test_a_disk_that_refuses_is_a_clear_error_and_keeps_the_old_state(tmp_path: Path, monkeypatch):
    model, optimizer = fresh()
    save_state(tmp_path, 4, model, optimizer, {}, keep=2)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sobre.train.state.save_file", full)
    with pytest.raises(RunError, match="state of step 5 could not be written .*No space left"):
        save_state(tmp_path, 5, model, optimizer, {}, keep=1)
    assert saved_steps(tmp_path) == [4]
    shutil.rmtree(tmp_path / "step-00000004")


FULL = """
import json
import shutil
import sys
from pathlib import Path

from sobre.errors import RunError
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.train.resume import load_state
from sobre.train.state import save_state, saved_steps

disk, found = Path(sys.argv[1]), []
model = Decoder(ModelConfig(vocab_size=64, d_model=32, n_layers=1, max_len=32))
names = dict(model.named_parameters())
optimizer = Optimizer(names, roles(names), OptimConfig())
before = shutil.disk_usage(disk).free
save_state(disk / "state", 1, model, optimizer, {}, keep=2)
size = before - shutil.disk_usage(disk).free
for room in (0, size // 2, size - 8192):  # not even a folder, half of the weights, all but the last small file
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - room))
    try:
        save_state(disk / "state", 2, model, optimizer, {}, keep=2)
        said = ""
    except RunError as error:
        said = str(error)
    left = sorted(path.name for path in (disk / "state").iterdir())
    found.append([said, left, load_state(disk / "state", model, optimizer)])
    filler.unlink()
save_state(disk / "state", 2, model, optimizer, {}, keep=2)
print(json.dumps([found, saved_steps(disk / "state")]))
"""


@pytest.mark.slow
def test_a_state_for_which_the_disk_has_no_room_leaves_the_one_before_and_the_next_one_fits_when_there_is(
    tmp_path: Path,
):
    """A disk of its own (16 MB of memory, mounted in a namespace of this user), filled but for some bytes."""
    inside = 'mount -t tmpfs -o size=16m disk "$0" && exec "$@"'
    line = ["unshare", "--map-root-user", "--mount", "sh", "-c", inside, str(tmp_path)]
    try:
        subprocess.run([*line, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted in a namespace here: {getattr(error, 'stderr', None) or error}")
    done = subprocess.run([*line, sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found, then = json.loads(done.stdout)
    for said, left, meta in found:
        assert said.startswith(f"the state of step 2 could not be written to {tmp_path / 'state'}: "), said
        assert "No space left on device" in said
        assert left == ["step-00000001"]
        assert meta == {"step": 1}
    assert len(found) == 3
    assert then == [1, 2]
