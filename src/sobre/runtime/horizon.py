"""How many steps a stage has, when its budget is time: watched, corrected, and recorded.

A stage begins with a guess of its steps. After every step the cost of recent steps says where the stage would end; when
that misses the stage's budget by more than TOLERANCE of it, a new horizon is chosen and written to the event log
before it takes effect. Progress (what the learning-rate schedule follows) goes on from where it was and reaches 1 at
the new end, so a schedule never jumps. In the last FREEZE of the budget the horizon stands still; a stage that is then
overtaken by the clock is ended OVERDRAFT late at most.

A resumed run replays the log (runtime/events.py). `state()` carries the recent costs, so that with the same clock a
resumed run decides what the uninterrupted one decides.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from sobre.runtime.clock import Meter
from sobre.runtime.events import EventLog

TOLERANCE = 0.015
"""A predicted miss, as a share of the stage's budget, that is worth a new horizon."""
INTERVAL = 0.02
"""Share of the stage's budget between two new horizons: at most fifty of them, however much the clock jitters."""
FREEZE = 0.03
"""Share of the stage's budget before its end in which the horizon stands still."""
OVERDRAFT = 0.01
"""Share of the stage's budget by which a frozen stage may run over before it is ended."""
WINDOW = 64
"""Recent steps whose cost is averaged."""
WARMUP = 2
"""Counted steps before the first correction; the very first step (allocations, first kernels) is never counted."""
OUTLIER = 4.0
"""A step counts as at most this many times the median: one swapped-out second is no new speed."""


@dataclass(frozen=True)
class Segment:
    """The plan in force: at `step` progress was `progress`, and it reaches 1 at step `total`."""

    step: int
    progress: float
    total: int

    def progress_at(self, step: int) -> float:
        if step >= self.total:
            return 1.0
        return self.progress + (1.0 - self.progress) * (step - self.step) / (self.total - self.step)


class Horizon:
    """The end of one stage.

    Example:
        horizon = Horizon(log, meter, "sft", budget=120.0, guess=300)
        while not horizon.ended(step):          # may record a new horizon, or the end
            train(lr_scale(horizon.progress(step))); step += 1

    With `budget=None` the stage has exactly `guess` steps. `ended` is called once before every step, in order; after
    `restore` it is called next for the step that the saved state names.
    """

    def __init__(self, log: EventLog, meter: Meter, stage: str, *, budget: float | None, guess: int) -> None:
        self._log, self._meter, self.stage = log, meter, stage
        self._costs: deque[float] = deque(maxlen=WINDOW)
        self._last_used: float | None = None
        self._last_choice = 0.0
        self._frozen = False
        start = log.decide(stage, 0, "begin", lambda: self._begin(budget, guess))
        assert start is not None, "a stage's log begins with its begin event"
        self.budget: float | None = start["budget"]
        self.end_at: float | None = start["end_at"]
        self.segment = Segment(0, 0.0, start["total"])
        self.finished = False
        self.news = ""
        """What the last call of `ended` changed, in words; empty when nothing."""

    @property
    def total(self) -> int:
        """Steps of the stage, as planned now."""
        return self.segment.total

    def progress(self, step: int) -> float:
        """Share of the schedule before step `step`, from 0 to 1; it never goes back."""
        return self.segment.progress_at(step)

    def ended(self, step: int) -> bool:
        """Note the cost of the last step, correct the horizon if need be, and say whether the stage is over."""
        self._observe(step)
        self.news = ""
        horizon = self._log.decide(self.stage, step, "horizon", lambda: self._correct(step))
        if horizon is not None:
            self.news = f"{self.stage}: {horizon['total']:,} steps instead of {self.total:,}, at its recent speed"
            self._apply(step, horizon)
        end = self._log.decide(self.stage, step, "end", lambda: self._end(step))
        if end is not None and end["reason"] == "budget":
            self.news = f"{self.stage}: ended at step {step:,} of {self.total:,}, its share of the budget is used"
        self.finished = end is not None
        return self.finished

    def cost(self) -> float:
        """Budget units per step: the mean of recent steps, outliers clipped. 0 before any was seen."""
        if not self._costs:
            return 0.0
        most = OUTLIER * median(self._costs)
        return sum(min(cost, most) for cost in self._costs) / len(self._costs)

    def state(self) -> dict[str, Any]:
        """What a saved state must hold; take it together with the meter's."""
        return {
            "segment": [self.segment.step, self.segment.progress, self.segment.total],
            "costs": list(self._costs),
            "last_used": self._last_used,
            "last_choice": self._last_choice,
            "frozen": self._frozen,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; the meter must be restored before."""
        step, progress, total = state["segment"]
        self.segment = Segment(step, progress, total)
        self._costs = deque(state["costs"], maxlen=WINDOW)
        self._last_used = state["last_used"]
        self._last_choice = state["last_choice"]
        self._frozen = state["frozen"]

    def _begin(self, budget: float | None, guess: int) -> dict[str, Any]:
        used = self._meter.used()
        return {
            "total": max(1, guess),
            "budget": budget,
            "end_at": None if budget is None else used + budget,
            "used": used,
        }

    def _observe(self, step: int) -> None:
        if step == 0:
            return
        used = self._meter.used()
        if self._last_used is not None:
            self._costs.append(used - self._last_used)
        self._last_used = used

    def _correct(self, step: int) -> dict[str, Any] | None:
        """A new horizon if the present one would miss the budget; the decision of this moment, not yet in force."""
        if self.budget is None or self.end_at is None or self._frozen or len(self._costs) < WARMUP:
            return None
        used, cost = self._meter.used(), self.cost()
        left = self.end_at - used
        self._frozen = left < FREEZE * self.budget
        if cost <= 0 or left < cost / 2:
            return None
        steps, planned = max(1, round(left / cost)), self.total - step
        forced = self._frozen or planned <= 1  # the last chance to correct
        rests = used - self._last_choice < INTERVAL * self.budget
        small = abs(planned - steps) * cost < TOLERANCE * self.budget
        if steps == planned or ((rests or small) and not forced):
            return None
        return {
            "total": step + steps,
            "progress": self.progress(step),
            "used": used,
            "cost": cost,
            "frozen": self._frozen,
        }

    def _apply(self, step: int, horizon: Mapping[str, Any]) -> None:
        self.segment = Segment(step, horizon["progress"], horizon["total"])
        self._last_choice = horizon["used"]
        self._frozen = horizon["frozen"]

    def _end(self, step: int) -> dict[str, Any] | None:
        used = self._meter.used()
        if step >= self.total:
            return {"reason": "steps", "used": used}
        if self.budget is None or self.end_at is None:
            return None
        late = OVERDRAFT * self.budget if self._frozen else 0.0
        if used + self.cost() / 2 >= self.end_at + late:
            return {"reason": "budget", "used": used}
        return None
