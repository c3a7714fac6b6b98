"""Who runs next, and in which row of the cache. Pure Python: the model's side is in runner.py.

Requests wait in order of arrival and run in slots. Before each decode step `schedule` makes the running slots exactly
0..R-1: the gaps left by finished and aborted requests go to waiting ones first, then to the rows at the end, which
move. So decoding reads the cache in place and computes nothing for empty rows.

A row runs once every token of its context but the last is in the cache; the last one goes through the next decode step.
Hence a prompt that is already there, computed for another request, is a copy of cache entries and no forward pass.
"""

from dataclasses import dataclass, field

from sobre.engine.ending import Loops, ThoughtState
from sobre.engine.request import Request


@dataclass(slots=True, eq=False)
class Row:
    """A request on its way."""

    request: Request
    context: list[int]
    """Prompt, then answer so far."""
    logprobs: list[float] = field(default_factory=list)
    slot: int = -1
    """Row of the cache; -1 while waiting."""
    weight_version: int = 0
    loops: Loops | None = None
    thought: ThoughtState | None = None

    @staticmethod
    def of(request: Request) -> "Row":
        """A request that has just come."""
        row = Row(request, list(request.prompt_ids))
        if request.params.repetition is not None:
            row.loops = Loops(request.params.repetition)
        if request.thought is not None:
            row.thought = ThoughtState(request.thought.end_ids, request.thought.max_tokens)
        return row

    @property
    def answer(self) -> list[int]:
        """The answer so far."""
        return self.context[len(self.request.prompt_ids) :]

    @property
    def n_cached(self) -> int:
        """Cache entries that a running row holds."""
        return len(self.context) - 1

    @property
    def n_generated(self) -> int:
        return len(self.logprobs)


@dataclass(frozen=True)
class Copy:
    """The first `length` cache entries of slot `source` belong in slot `target` too."""

    source: int
    target: int
    length: int


@dataclass(frozen=True)
class Plan:
    """What must happen, in this order, before the running rows can decode."""

    moves: list[Copy]
    prefills: list[Row]
    """Rows whose context, but for its last token, is to be computed."""
    copies: list[Copy]
    """Shared prompts, from slots that the prefills or earlier steps have filled."""
    batch_changed: bool
    """Whether the running rows, or their slots, are others than after the last plan."""


class Scheduler:
    """First come, first served; at most `max_batch` at once, at most `prefill_tokens` of prompts at a time."""

    def __init__(self, max_batch: int, prefill_tokens: int) -> None:
        self.max_batch, self.prefill_tokens = max_batch, prefill_tokens
        self.waiting: dict[str, Row] = {}
        self._slots: list[Row | None] = []
        self._slot_of: dict[str, int] = {}
        self._changed = False

    @property
    def running(self) -> list[Row]:
        """Rows by slot; without gaps after `schedule`."""
        return [row for row in self._slots if row is not None]

    @property
    def n_running(self) -> int:
        return len(self._slot_of)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self._slot_of)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.waiting or request_id in self._slot_of

    def add(self, request: Request) -> None:
        assert request.id not in self, "the engine refuses ids in use"
        self.waiting[request.id] = Row.of(request)

    def find(self, request_id: str) -> Row | None:
        """The row of a request that waits or runs."""
        if request_id in self._slot_of:
            return self._slots[self._slot_of[request_id]]
        return self.waiting.get(request_id)

    def remove(self, request_id: str) -> Row | None:
        """Forget a request wherever it stands (finished or aborted); None when it is not here."""
        if request_id in self.waiting:
            return self.waiting.pop(request_id)
        if request_id not in self._slot_of:
            return None
        self._changed = True
        slot = self._slot_of.pop(request_id)
        row, self._slots[slot] = self._slots[slot], None
        return row

    def requeue(self) -> None:
        """Send every running row back to the head of the queue: its cache entries are void."""
        rows = self.running
        for row in rows:
            row.slot = -1
        self._slots, self._slot_of, self._changed = [], {}, True
        self.waiting = {row.request.id: row for row in rows} | self.waiting

    def schedule(self) -> Plan:
        """Fill the gaps, close the rest of them, and say what the model's side must do."""
        prefills, sharers = self._admit()
        moves = self._compact()  # before the copies: the row to copy from may move
        copies = [Copy(donor.slot, row.slot, row.n_cached) for donor, row in sharers]
        changed, self._changed = self._changed, False
        return Plan(moves, prefills, copies, changed)

    def check(self) -> None:
        """The invariants, for tests and for an idle moment: no slot leaks, none is held twice."""
        held = {row.request.id: slot for slot, row in enumerate(self._slots) if row is not None}
        assert held == self._slot_of, f"slots {held} disagree with the index {self._slot_of}"
        assert all(row is None or row.slot == slot for slot, row in enumerate(self._slots)), "a row forgot its slot"
        assert not held.keys() & self.waiting.keys(), "a request runs and waits at once"
        assert all(row.slot == -1 for row in self.waiting.values()), "a waiting request holds a slot"
        assert len(self._slots) <= self.max_batch, f"{len(self._slots)} slots of {self.max_batch}"

    def _admit(self) -> tuple[list[Row], list[tuple[Row, Row]]]:
        """Start waiting requests: those to compute, and pairs of a row and one that shares its prompt."""
        prefills: list[Row] = []
        sharers: list[tuple[Row, Row]] = []
        if not self.waiting or self.n_running == self.max_batch:
            return prefills, sharers
        donors = {row.request.prompt_ids: row for row in self.running}
        gaps = iter([slot for slot, row in enumerate(self._slots) if row is None])
        budget = self.prefill_tokens
        while self.waiting and self.n_running < self.max_batch:
            row = next(iter(self.waiting.values()))
            donor = donors.get(row.request.prompt_ids) if row.n_generated == 0 else None
            if donor is None and prefills and row.n_cached > budget:
                break
            self._place(row, next(gaps, len(self._slots)))
            if donor is not None:
                sharers.append((donor, row))
                continue
            donors[row.request.prompt_ids] = row
            prefills.append(row)
            budget -= row.n_cached
        return prefills, sharers

    def _place(self, row: Row, slot: int) -> None:
        self._changed = True
        del self.waiting[row.request.id]
        if slot == len(self._slots):
            self._slots.append(None)
        self._slots[slot], self._slot_of[row.request.id], row.slot = row, slot, slot

    def _compact(self) -> list[Copy]:
        """Move rows from the end into the gaps that are left, which lie above every newly admitted row."""
        moves: list[Copy] = []
        for slot in range(len(self._slots)):
            while self._slots and self._slots[-1] is None:
                self._slots.pop()
            if slot >= len(self._slots):
                break
            if self._slots[slot] is None:
                row = self._slots.pop()
                assert row is not None
                moves.append(Copy(row.slot, slot, row.n_cached))
                self._slots[slot], self._slot_of[row.request.id], row.slot = row, slot, slot
        return moves
