"""What every part of one run shares: folder, meter, decisions, bill, metrics, voice; and which parts are done.

A part of the story (data, a stage, an examination) is done once: when it ends, its name and the meter go to
state/done.json in one move, and a resumed run skips it. What a part spends goes to the ledger as it is spent.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sobre.config.recipe import Recipe
from sobre.data.problems import ProblemSet
from sobre.ledger.ledger import LOST, Entry, Ledger, bill
from sobre.ledger.prices import Price
from sobre.plan.budget import Budget, parse_budget
from sobre.plan.rent import rent
from sobre.runtime.clock import Clock, Meter
from sobre.runtime.console import Console
from sobre.runtime.energy import EnergyMeter, assumed_watts
from sobre.runtime.events import EventLog
from sobre.runtime.files import write_json
from sobre.runtime.metrics import Metrics, read_metrics
from sobre.runtime.processes import Processes
from sobre.runtime.run_folder import RunFolder
from sobre.runtime.sinks import Sink

FILE_CLOCK_S = 0.02
"""How far the time of a file may lie behind the clock: systems stamp files by a coarse one."""


@dataclass
class Session:
    """One run, as one of its processes sees it: only the first one writes."""

    recipe: Recipe
    folder: RunFolder
    console: Console
    budget: Budget
    meter: Meter
    events: EventLog
    ledger: Ledger
    metrics: Metrics
    price: Price
    """Of all machines of the run."""
    processes: Processes = field(default_factory=Processes)
    energy: EnergyMeter = field(default_factory=EnergyMeter)
    device: torch.device = torch.device("cpu")
    """Where this process's models are; chosen when the machine was looked at."""
    peak_flops: float | None = None
    """Of one device, measured; known once the machine was calibrated."""
    sets: tuple[ProblemSet, ...] = ()
    """Problems from the recipe's files (app/problems.py)."""
    done: dict[str, dict[str, float]] = field(default_factory=dict)
    """Parts that are done, in order, and the meter at the end of each."""
    billed_s: float = 0.0
    """Where the last bill ended, on the meter."""
    opened_at: float = field(default_factory=lambda: time.time())
    """When this process took the run up; seconds since 1970."""
    traced: int | None = None
    """Steps done before the one that is traced, in each stage (runtime/trace.py)."""

    @classmethod
    def open(
        cls,
        recipe: Recipe,
        folder: RunFolder,
        console: Console,
        *,
        processes: Processes | None = None,
        clock: Clock | None = None,
        head_start_s: float = 0,
        sinks: Sequence[Sink] = (),
        traced: int | None = None,
    ) -> "Session":
        """Begin, or go on where the folder's run stopped."""
        processes = processes or Processes()
        writes = processes.is_first
        rate = rent(recipe.budget.price, n_chips=processes.count, n_nodes=processes.n_nodes)
        budget = parse_budget(recipe.budget.amount, price_usd_per_h=rate.usd_per_h, n_devices=processes.count)
        session = cls(
            recipe=recipe,
            folder=folder,
            console=console,
            budget=budget,
            meter=Meter(budget.kind, budget.amount, clock, head_start_s=head_start_s),
            events=EventLog(folder.events if writes else None, processes.prompt.decide),
            ledger=Ledger(folder.ledger if writes else None),
            metrics=Metrics(folder.metrics if writes else None, sinks),
            price=rate,
            energy=EnergyMeter(recipe.budget.price.watts or assumed_watts()),
            processes=processes,
            done=processes.decide(lambda: _done(folder)),
            traced=traced,
        )
        if session.done:
            session.meter.restore(next(reversed(session.done.values())))
            session.billed_s = session.meter.seconds
        return session

    @contextmanager
    def part(self, name: str) -> Iterator["Spending"]:
        """Do a part: what it takes is billed to `name` when it ends, and the part is done. Ask `done` before."""
        spending = Spending(self, name)
        yield spending
        spending.pay()
        self.finish(name)

    def finish(self, name: str) -> None:
        """Say that part `name` is done."""
        self.metrics.flush()
        self.done[name] = self.meter.state()
        if self.processes.is_first:
            write_json(_done_file(self.folder), self.done)

    def usd(self) -> float:
        """Dollars so far."""
        return self.price.usd(self.meter.seconds)

    def left_s(self) -> float | None:
        """Seconds of the budget that are left; None where it does not count in seconds."""
        return self.meter.remaining() if self.budget.kind == "seconds" else None

    def note_waste(self, stage: str, step: int, saved_s: float, saved_at: float | None) -> None:
        """Bill what came after the state that `stage` goes on from, `step` steps into it, as waste.

        When torchrun's agent has started this process again, that is all time since: lost steps, a hang, the meeting
        and the start. Else it is what the metrics have seen, for nobody paid for the time between. The state was
        copied at `saved_s` on the meter, `saved_at` by the clock (seconds since 1970); None where the stage has none.
        """
        if not self.processes.is_first:
            return
        if self.processes.is_restart():
            since = self._useful_until(saved_at)
            own = since > self.opened_at - FILE_CLOCK_S  # what came later is this process's work
            lost_s = 0.0 if own else time.time() - since
        else:
            last = [line["time_s"] for line in read_metrics(self.folder.metrics)[-1:]]
            lost_s = last[0] - saved_s if last else 0.0
        undone_s = self.ledger.undo(stage, step)
        rest_s = max(0.0, lost_s - undone_s)
        if rest_s > 0:
            count = len(self.ledger.entries(LOST))
            self.ledger.append(self.entry(LOST, (count, count), wall_s=rest_s, wasted_s=rest_s))
        if undone_s + rest_s > 0:
            waste = f"{undone_s + rest_s:.1f} s after the last saved state are lost, and billed as waste"
            self.console.say(f"resume: {waste}")

    def _useful_until(self, saved_at: float | None) -> float:
        """When what is not billed yet began: with the last state, or with the last line of the bill if that was for
        waste (of a restart before) or there is no state. Seconds since 1970."""
        entries = self.ledger.entries()
        billed_at = (self.folder.ledger if entries else self.folder.path / "config.json").stat().st_mtime
        if saved_at is None:
            return billed_at
        return max(saved_at, billed_at) if entries and entries[-1].stage == LOST else saved_at

    def entry(
        self,
        stage: str,
        steps: tuple[int, int],
        *,
        wall_s: float,
        tokens: int = 0,
        flops: float = 0.0,
        wasted_s: float = 0.0,
    ) -> Entry:
        """A line of the bill at this machine's price and peak."""
        energy = self.energy.read(wall_s)
        return bill(
            stage,
            steps,
            wall_s=wall_s,
            tokens=tokens,
            flops=flops,
            price=self.price,
            n_devices=self.processes.count,
            peak_flops=self.peak_flops,
            energy=(energy.joules, energy.source) if self.processes.n_nodes == 1 else (None, "unknown"),
            wasted_s=min(wasted_s, wall_s),
        )


def _done_file(folder: RunFolder) -> Path:
    return folder.state / "done.json"


def _done(folder: RunFolder) -> dict[str, dict[str, float]]:
    path = _done_file(folder)
    parts: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.is_file() else {}
    return parts


class Spending:
    """Adds up what one part takes, and pays it in entries of consecutive steps. A part begins where the one before it
    ended, so that what prepares it is billed to it."""

    def __init__(self, session: Session, stage: str, *, step: int = 0) -> None:
        self._session, self._stage, self._step = session, stage, step
        if step:  # a stage that was taken up again: what was before is billed already, or lost
            session.billed_s = session.meter.seconds
        self.tokens, self.flops, self.wasted_s = 0, 0.0, 0.0

    def add(self, *, tokens: int = 0, flops: float = 0.0, wasted_s: float = 0.0) -> None:
        """Count tokens, model FLOPs and wasted seconds."""
        self.tokens += tokens
        self.flops += flops
        self.wasted_s += wasted_s

    def due(self, step: int | None = None) -> Entry:
        """The entry for everything since the last one; `step` is where the stage stands now."""
        seconds = self._session.meter.seconds
        to = self._step + 1 if step is None else step
        entry = self._session.entry(
            self._stage,
            (self._step, to),
            wall_s=seconds - self._session.billed_s,
            tokens=self.tokens,
            flops=self.flops,
            wasted_s=self.wasted_s,
        )
        self._session.billed_s, self._step = seconds, to
        self.tokens, self.flops, self.wasted_s = 0, 0.0, 0.0
        return entry

    def pay(self, step: int | None = None) -> None:
        """Write the entry."""
        self._session.ledger.append(self.due(step))
