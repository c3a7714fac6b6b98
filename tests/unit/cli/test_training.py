"""The trainer of a stage: what it saves, what it takes up again, and what it bills."""

import os
import time
from collections.abc import Container
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sobre.app import training
from sobre.app.session import Session
from sobre.app.training import Trainer
from sobre.config.load import NoOptions, to_dict
from sobre.config.recipe import load_recipe
from sobre.errors import ConfigError, RunError
from sobre.ledger.ledger import Ledger
from sobre.models.config import ModelConfig
from sobre.models.decoder import Decoder
from sobre.optim.config import OptimConfig
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.runtime.console import Console
from sobre.runtime.horizon import Horizon
from sobre.runtime.metrics import read_metrics
from sobre.runtime.run_folder import claim, resume
from sobre.train.config import SaveConfig
from sobre.train.loop import Stage
from sobre.train.losses import Loss, next_token
from sobre.train.state import saved_steps

from ..train.test_loop import Rows


class SavingTrainer(Trainer):
    """Saves at given steps, whatever the clock says."""

    def __init__(self, session: Session, stage: Stage, save_at: Container[int]) -> None:
        super().__init__(session, stage, rehearse=False)
        self.save_at = save_at

    def _save_or_stop(self, step: int) -> None:
        if step in self.save_at:
            self._save(step)
            self._commit()


class Attempt:
    """One process's life: the stage "sft" of a run in `out`, up to a step, and what was said."""

    def __init__(self, out: Path, cfg: ModelConfig, *flags: str) -> None:
        recipe, _ = load_recipe(["nano", *flags], NoOptions)
        self.folder = resume(out) if out.exists() else claim(recipe.name, to_dict(recipe), out=out)
        self.said: list[str] = []
        console = Console(quiet=True)
        console.say = lambda text, **_: self.said.append(text)  # type: ignore[method-assign]
        self.session = Session.open(recipe, self.folder, console)
        self.cfg = cfg

    def train(self, steps: int, save_at: Container[int] = (), poisoned_at: int | None = None) -> None:
        """Up to the last step; states at `save_at` and at the end. The loss of step `poisoned_at` is no number."""
        torch.manual_seed(0)
        model, session = Decoder(self.cfg), self.session
        model.init_weights(0)
        names = dict(model.named_parameters())
        optimizer = Optimizer(names, roles(names), OptimConfig())
        horizon = Horizon(session.events, session.meter, "sft", budget=None, guess=steps)
        source = Rows()

        def loss(model, output, batch) -> Loss:
            found = next_token(model, output, batch)
            return Loss(found.sum * torch.nan) if source.taken - 1 == poisoned_at else found

        stage = Stage(
            name="sft",
            model=model,
            optimizer=optimizer,
            source=source,
            loss_fn=loss,
            horizon=horizon,
            meter=session.meter,
            train_flops=lambda batch: 1.0,
            lr_at=lambda progress, step: 1.0,
            clip=1.0,
            mtp_weight=0.3,
        )
        try:
            SavingTrainer(session, stage, save_at).run()
        finally:
            self.folder.release()

    @property
    def states(self) -> Path:
        return self.folder.state / "sft"


def test_a_stage_that_is_taken_up_after_its_last_step_writes_no_state_again(tmp_path: Path, nano_config: ModelConfig):
    first = Attempt(tmp_path / "run", nano_config)
    first.train(2)
    meta = first.states / "step-00000002" / "meta.json"
    before = meta.stat().st_ino
    again = Attempt(tmp_path / "run", nano_config)
    again.train(2)
    assert again.said[-1] == "resume: sft goes on after step 2"
    assert meta.stat().st_ino == before
    assert saved_steps(first.states) == [2]


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_no_state_is_refused(keep: int):
    with pytest.raises(ConfigError, match=f"save.keep={keep} must be at least 1"):
        SaveConfig(keep=keep)


def test_a_run_whose_newest_state_is_damaged_goes_on_from_the_one_before_and_bills_what_is_done_again_as_waste(
    tmp_path: Path, nano_config: ModelConfig
):
    first = Attempt(tmp_path / "run", nano_config)
    first.train(6, save_at={2})
    paid = Ledger(first.folder.ledger).entries("sft")
    assert [(entry.step_from, entry.step_to) for entry in paid] == [(0, 2), (2, 6)]
    file = first.states / "step-00000006" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    again = Attempt(tmp_path / "run", nano_config)
    again.train(6, save_at={4})
    assert "the state before it is taken" in again.said[0]
    ledger = Ledger(first.folder.ledger)
    assert [(entry.step_from, entry.step_to) for entry in ledger.entries("sft")] == [(0, 2), (2, 4), (4, 6)]
    assert sum(entry.tokens for entry in ledger.entries("sft")) == 6 * 2 * 16
    (lost,) = ledger.entries("lost")
    assert lost.wasted_s == lost.wall_s == pytest.approx(paid[1].wall_s)
    assert ledger.entries()[0] == paid[0]


def test_a_restart_bills_all_time_since_the_last_state_and_a_second_one_no_second_of_it_again(
    tmp_path: Path, nano_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
):
    def dies_in(run: Attempt) -> list[float]:
        with pytest.raises(RunError, match="step 3"):
            run.train(6, save_at={2}, poisoned_at=3)
        return [entry.wasted_s for entry in Ledger(run.folder.ledger).entries("lost")]

    assert dies_in(Attempt(tmp_path / "run", nano_config)) == []
    now = time.time
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(time, "time", lambda: now() + 100)
    second = Attempt(tmp_path / "run", nano_config)
    (lost,) = dies_in(second)
    assert 100 <= lost < 150
    os.utime(second.folder.ledger, (now() + 100, now() + 100))  # the clock of the disk goes with it
    monkeypatch.setattr(time, "time", lambda: now() + 130)
    first_lost, then = dies_in(Attempt(tmp_path / "run", nano_config))
    assert first_lost == lost
    assert 30 <= then < 80


def test_a_restart_before_the_first_state_bills_all_time_since_the_last_line_of_the_bill(
    tmp_path: Path, nano_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
):
    first = Attempt(tmp_path / "run", nano_config)
    with first.session.part("start"):
        pass
    with pytest.raises(RunError, match="step 1"):
        first.train(6, poisoned_at=1)
    now = time.time
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(time, "time", lambda: now() + 100)
    Attempt(tmp_path / "run", nano_config).train(6)
    (lost,) = Ledger(first.folder.ledger).entries("lost")
    assert 100 <= lost.wasted_s < 150


def test_what_a_restarted_process_has_done_and_billed_is_no_waste_of_the_stage_that_follows(
    tmp_path: Path, nano_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
):
    first = Attempt(tmp_path / "run", nano_config)
    with first.session.part("start"):
        pass
    first.folder.release()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again = Attempt(tmp_path / "run", nano_config)
    with again.session.part("eval:pretrain"):
        pass
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 100)  # the next stage is prepared
    again.train(2)
    assert Ledger(first.folder.ledger).entries("lost") == []


def test_who_resumes_a_run_by_hand_pays_for_the_steps_that_are_done_again_alone(
    tmp_path: Path, nano_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
):
    first = Attempt(tmp_path / "run", nano_config)
    with pytest.raises(RunError, match="step 5"):
        first.train(6, save_at={2}, poisoned_at=5)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 1000)
    Attempt(tmp_path / "run", nano_config).train(6)
    (lost,) = Ledger(first.folder.ledger).entries("lost")
    assert 0 < lost.wasted_s < 500


def test_a_line_on_the_stage_s_health_comes_now_and_then_with_the_numbers_of_the_log(
    tmp_path: Path, nano_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
):
    ahead = replace(nano_config, n_mtp=1)
    quick = Attempt(tmp_path / "quick", ahead)
    quick.train(10)
    assert not [text for text in quick.said if "max violation" in text]
    monkeypatch.setattr(training, "HEALTH_S", 0.0)
    run = Attempt(tmp_path / "run", ahead)
    run.train(21)
    logged = {line["step"] + 1: line for line in read_metrics(run.folder.metrics)}
    assert [step for step, line in logged.items() if "mtp_acceptance" in line] == [10, 20]
    assert [text for text in run.said if "max violation" in text] == [
        f"health: sft, step {step}: max violation {logged[step]['max_violation']:.2f}, dead experts"
        f" {logged[step]['dead_experts']}, bias drift {logged[step]['bias_drift']:.3f},"
        f" MTP right {logged[step]['mtp_acceptance']:.1%}"
        for step in (10, 20)
    ]
