"""One stage of training: build it, take up a saved state if there is one, run it, save the model.

What differs between pretraining, fine-tuning and RL is the source of batches and the loss; the rest is here once.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from sobre.app import adapting
from sobre.app.session import Session, Spending
from sobre.ledger.ledger import Entry
from sobre.models.checkpoint import load_model
from sobre.models.decoder import Decoder
from sobre.models.low_precision import set_precision
from sobre.models.regions import compile_layers
from sobre.optim.optimizer import Optimizer
from sobre.optim.roles import roles
from sobre.optim.schedule import lr_scale as lr_at
from sobre.parallel.division import Division
from sobre.plan.count import train_flops
from sobre.runtime.horizon import Horizon
from sobre.runtime.trace import StepTrace
from sobre.runtime.waiting import Waiting
from sobre.tokenizer.tokenizer import Tokenizer
from sobre.train.batch import Batch
from sobre.train.config import Precision
from sobre.train.export import save_divided
from sobre.train.health import Health
from sobre.train.loop import WATCHED, Source, Stage, StepRecord, dry_run, run_stage
from sobre.train.losses import LossFn
from sobre.train.resume import load_state
from sobre.train.state import Saving

NEWS = 0.1
"""A change of the horizon is said aloud when it exceeds this share; every change stands in the events."""


HEALTH_S = 60.0
"""Seconds between two lines on a stage's health."""


class Trainer:
    """Runs one stage inside a session: logs, bills, saves, and stops cleanly on Ctrl-C."""

    def __init__(self, session: Session, stage: Stage, *, rehearse: bool) -> None:
        self.rehearse = rehearse
        self.session, self.stage, self.processes = session, stage, session.processes.prompt
        self.folder = session.folder.state / stage.name
        self.tokens, self.flops = 0, 0.0
        self._said = stage.horizon.total
        self._saved_at, self._saved_step = time.monotonic(), -1
        self._told_at = time.monotonic()
        self._interrupted = False
        self._health = Health()
        self._trace = StepTrace(session.folder.state / "trace" / stage.name, self.processes.rank, session.traced)
        self._saving: tuple[Saving, Entry] | None = None
        """The state that is being written, and the bill that goes with it."""
        self._save_s = 0.0
        """How long training waited for saved states since the last line of the log."""

    def run(self) -> None:
        """Train to the stage's end."""
        start = self._resume()
        self.spending = Spending(self.session, self.stage.name, step=start)
        self._last_s = self.session.meter.seconds
        self._waiting = Waiting() if self.processes.count > 1 else None
        if start == 0 and self.rehearse:
            dry_run(self.stage)
        self.session.console.stage(self.stage.name, self.stage.horizon.total)
        before = signal.signal(signal.SIGINT, self._interrupt)
        self._trace.begin(start)
        try:
            step = run_stage(self.stage, start=start, hooks=[self._log], after_step=self._after_step)
        finally:
            signal.signal(signal.SIGINT, before)
            if self._waiting is not None:
                self._waiting.stop()
            self.session.metrics.flush()  # of a run that fails, too: what was lost is billed by them
        self._commit()
        if not step:
            self.session.console.say(
                f"{self.stage.name}: not one step, for what is left of the budget is kept for what follows; the model"
                " stays as it was"
            )
        if step != self._saved_step:
            self._save(step)
            self._commit()

    def _resume(self) -> int:
        stage, processes = self.stage, self.processes
        meta = load_state(
            self.folder,
            stage.model,
            stage.optimizer,
            division=stage.division,
            processes=processes,
            say=lambda text: self.session.console.say(f"resume: {text}; the state before it is taken"),
        )
        if meta is None:
            self.session.note_waste(stage.name, 0, self.session.meter.seconds, None)
            self.session.metrics.cut(self._stages_done(), self.stage.name, 0)
            return 0
        self.session.meter.restore(meta["meter"])
        self.session.ledger.append(Entry.from_dict(meta["entry"]))
        self.session.note_waste(stage.name, meta["step"], meta["meter"]["seconds"], meta["saved_at"])
        self.session.metrics.cut(self._stages_done(), self.stage.name, meta["step"])
        self.stage.horizon.restore(meta["horizon"])
        self.stage.source.restore(meta["source"])
        self._health.restore(meta["health"])
        self.tokens, self.flops = meta["tokens"], meta["flops"]
        self._saved_step = int(meta["step"])
        self.session.console.say(f"resume: {self.stage.name} goes on after step {self._saved_step:,}")
        return self._saved_step

    def _log(self, record: StepRecord) -> None:
        info, meter = record.info, self.session.meter
        took, self._last_s = meter.seconds - self._last_s, meter.seconds
        n_sampled = int(record.metrics.get("rollout_tokens", 0))
        self.tokens += info.n_tokens + n_sampled
        self.flops += record.flops
        wasted_s = record.metrics.get("rollout_s", 0.0) * record.metrics.get("wasted_share", 0.0)
        wasted_s += record.metrics.get("lost_s", 0.0)
        self.spending.add(tokens=info.n_tokens + n_sampled, flops=record.flops, wasted_s=wasted_s)
        tokens_per_s = (info.n_tokens + n_sampled) / took if took > 0 else None
        health = {} if info.load_LE is None else self._health.see(info.load_LE, record.step)
        if info.mtp_acceptance is not None:
            health["mtp_acceptance"] = info.mtp_acceptance
        if record.step % WATCHED == 0:
            health |= self._compare()
            self._tell(record.step, self._health.line(health))
        self.session.metrics.add(
            self.stage.name,
            record.step - 1,
            time_s=meter.seconds,
            used=meter.used(),
            tokens=self.tokens,
            flops=self.flops,
            loss=info.loss,
            mtp_loss=info.mtp_loss,
            lr=record.lr,
            grad_norm=info.grad_norm,
            tokens_per_s=tokens_per_s,
            **health,
            **({"signal": self.stage.optimizer.signal()} if "reward" in record.metrics and info.n_trained else {}),
            **({"save_s": self._save_s} if self._save_s else {}),
            **info.stats,
            **record.metrics,
        )
        for news in self._health.news():
            self.session.console.say(f"health: {self.stage.name}, step {record.step:,}: {news}")
        self._save_s = 0.0
        self._show(record, tokens_per_s)

    def _tell(self, step: int, health: str) -> None:
        """Say how things are, now and then."""
        if health and time.monotonic() - self._told_at >= HEALTH_S:
            self.session.console.say(f"health: {self.stage.name}, step {step:,}: {health}", style="dim")
            self._told_at = time.monotonic()

    def _compare(self) -> dict[str, Any]:
        """How long each process was at its own part since the last time, and how far router biases are apart."""
        own_s = 0.0 if self._waiting is None else self._waiting.own_s()
        biases = [router.bias_E for router in self.stage.model.routers() if router.cfg.biased]
        found = self.processes.gather((own_s, [float(bias_E.max() - bias_E.min()) for bias_E in biases]))
        spreads = [spread for _, its in found for spread in its]
        health = self._health.compare([own_s for own_s, _ in found])
        return health | (self._health.drifted(max(spreads)) if spreads else {})

    def _show(self, record: StepRecord, tokens_per_s: float | None) -> None:
        horizon, session = self.stage.horizon, self.session
        if abs(horizon.total - self._said) > NEWS * self._said:
            text = f"{self.stage.name}: {horizon.total:,} steps instead of {self._said:,}, at its recent speed"
            session.console.say(text, style="dim")
            self._said = horizon.total
        session.console.update(
            record.step,
            horizon.total,
            loss=None if "reward" in record.metrics else record.info.loss,
            reward=record.metrics.get("reward"),
            right=record.metrics.get("pass_rate"),
            tok_s=tokens_per_s,
            usd=session.usd(),
            left_s=session.left_s(),
        )

    def _after_step(self, step: int) -> None:
        self._trace.end()
        self._save_or_stop(step)
        self._trace.begin(step)

    def _save_or_stop(self, step: int) -> None:
        every_s, processes = self.session.recipe.save.every_s, self.processes
        is_due = self._saving is None and time.monotonic() - self._saved_at >= every_s
        writes = self._saving is not None and not self._saving[0].is_written()
        save, stop, writes = processes.any(is_due and processes.is_first, self._interrupted, writes)
        if not writes:
            self._commit()
        if stop:
            self._commit()
            self._save(step)
            self._commit()
            self.session.console.close()
            self.session.console.say(f"saved after step {step:,} of {self.stage.name}")
            raise KeyboardInterrupt
        if save:
            self._save(step)
            if not every_s:
                self._commit()

    def _save(self, step: int) -> None:
        """Begin to write the state; training goes on meanwhile."""
        session, begun = self.session, time.monotonic()
        session.metrics.flush()
        entry = self.spending.due(step)
        meta: dict[str, Any] = {
            "meter": session.meter.state(),
            "entry": entry.to_dict(),
            "saved_at": time.time(),
            "horizon": self.stage.horizon.state(),
            "source": self.stage.source.state(),
            "health": self._health.state(),
            "tokens": self.tokens,
            "flops": self.flops,
        }
        stage, keep = self.stage, session.recipe.save.keep
        saving = Saving(
            self.folder,
            step,
            stage.model,
            stage.optimizer,
            meta,
            keep=keep,
            division=stage.division,
            processes=self.processes,
        )
        self._saving = (saving, entry)
        self._save_s += time.monotonic() - begun
        self._saved_at, self._saved_step = time.monotonic(), step

    def _commit(self) -> None:
        """State, then bill: the entry lies in the state too, so that a kill in between loses and doubles nothing."""
        if self._saving is not None:
            begun, (saving, entry) = time.monotonic(), self._saving
            self._saving = None
            saving.finish()
            self.session.ledger.append(entry)
            self._save_s += time.monotonic() - begun

    def _stages_done(self) -> list[str]:
        return [name.removeprefix("train:") for name in self.session.done if name.startswith("train:")]

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self._interrupted = True


def nothing() -> None:
    """What most sources have to close."""


@dataclass(frozen=True)
class Job:
    """What one stage trains on, and how far."""

    source: Source
    loss_fn: LossFn
    budget: float | None
    """In the budget's unit; None runs exactly `steps`."""
    steps: int
    lr_scale: float
    """Over the optimizer's own rates."""
    clip: float
    mtp_weight: float = 0.0
    rebalance: bool = True
    rehearse: bool = False
    """Try the first batch before anything is spent."""
    precision: Precision = "auto"
    recompute: bool = False
    compiles: bool = False
    """By region, as the stage begins."""
    offloads: bool = False
    close: Callable[[], None] = nothing
    """Ends what the source has started."""


def train(
    session: Session, name: str, model: Decoder, division: Division | None, tokenizer: Tokenizer, job: Job
) -> Decoder:
    """Train `model` in place and write its folder; returns the model to go on with, whole in every process."""
    optim = session.recipe.optim
    set_precision(model, job.precision)
    model.recompute = job.recompute
    if job.compiles:
        compile_layers(model)
        session.console.say(f"{name}: layers are compiled by region as the first step meets them")
    names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = Optimizer(names, roles(names), optim, dtype=model.dtype, matrices=division)
    stage = Stage(
        name=name,
        model=model,
        optimizer=optimizer,
        source=job.source,
        loss_fn=job.loss_fn,
        horizon=Horizon(session.events, session.meter, name, budget=job.budget, guess=job.steps),
        meter=session.meter,
        train_flops=lambda batch: train_flops(
            model.cfg, batch.step.real.lengths, n_logits=n_trained(batch), lora=model.lora
        ),
        lr_at=lambda progress, step: job.lr_scale * lr_at(progress, step, optim),
        clip=job.clip,
        mtp_weight=job.mtp_weight,
        rebalance=job.rebalance and model.lora is None,
        division=division,
        offloads=job.offloads,
    )
    try:
        Trainer(session, stage, rehearse=job.rehearse).run()
    finally:
        model.parts = None
        job.close()
    save_folder(session, name, model, division, tokenizer)
    session.finish(f"train:{name}")
    if division is None or division.is_whole:
        return model
    whole = Decoder(model.cfg, dtype=model.dtype)
    whole.family = model.family
    whole.load_state_dict(load_model(session.folder.model(name)).state_dict())
    return whole.to(session.device)


def n_trained(batch: Batch) -> int:
    """Tokens that pay for the output head."""
    return int((batch.weights_N > 0).sum())


def save_folder(session: Session, name: str, model: Decoder, division: Division | None, tokenizer: Tokenizer) -> None:
    """The model folder of a stage: config, weights or adapters, tokenizer, template."""
    folder, processes = session.folder.model(name), session.processes
    tokens = tokenizer.end_ids()
    if division is None or division.is_whole:
        processes.decide(lambda: adapting.leave(model, folder, session.recipe, tokenizer, tokens))
    else:
        save_divided(model, division, processes, folder, extra=tokens)
    processes.decide(lambda: tokenizer.save(folder, max_len=model.cfg.max_len))
