"""Who runs next, and in which blocks of the cache. Pure Python: the model's side is in runner.py.

Requests wait in order of arrival. One that finds a free slot and enough blocks for its context runs: first its context,
but for its last token, is computed in pieces, then each step gives it a token. Every step holds both, pieces of prompts
and one decode step for all who are ready, so neither makes the other wait. A short last piece (of a prompt that was
found, say) goes with the decode step itself: its first token costs one pass of the model. Of a step's budget of prompt
tokens the oldest prompt gets half and the shortest ones the rest: no short prompt waits for the whole of a long one.

Growing takes blocks one by one. When none is left, the youngest request gives its blocks back and waits at the head of
the queue with everything that it has; what it gets afterwards is the same, since samples are keyed by position.

Blocks already computed are found by digest (blocks.py) and never computed twice; where a context goes on from the end
of an earlier one (the next turn of a chat), that one's last, half full block is copied. Requests with the prompt of one
that runs (samples of one problem) share its blocks, and copy the last, half full one.
"""

from collections import deque
from dataclasses import dataclass, field

from sobre.engine.blocks import BlockPool, digest, root
from sobre.engine.ending import Loops, ThoughtState
from sobre.engine.request import Kept, Request
from sobre.models.config import BLOCK

JOINED_TOKENS = 128
"""Padded tokens of a decode step, at most, for pieces of prompts to go with it."""


@dataclass(slots=True, eq=False)
class Row:
    """A request on its way."""

    request: Request
    context: list[int]
    """Prompt, then answer so far."""
    arrival: int = 0
    prompt_hash: int = 0
    """Of prompt and cache key; equal hashes are compared in full."""
    logprobs: list[float] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    """What each token of the answer was chosen from, under `EngineConfig.return_kept`."""
    slot: int = -1
    """Row of the cache's table of blocks; -1 while waiting."""
    blocks: list[int] = field(default_factory=list)
    n_cached: int = 0
    """Tokens of the context whose entries are in the cache."""
    digests: list[bytes] = field(default_factory=list)
    """Of the full blocks of the context, as far as they were asked for."""
    n_registered: int = 0
    n_found: int = -1
    """Tokens of the prompt that were in the cache already when the request first ran; -1 before."""
    drafts: list[int] = field(default_factory=list)
    """Guesses at the tokens after the context, to be checked by the next step."""
    weight_version: int = 0
    loops: Loops | None = None
    thought: ThoughtState | None = None
    is_warm: bool = False
    """No request: a prefix that is computed because nothing else is to be done."""

    @staticmethod
    def of(request: Request, arrival: int = 0) -> "Row":
        """A request that has just come."""
        row = Row(request, list(request.prompt_ids), arrival, hash((request.cache_key, request.prompt_ids)))
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
    def n_generated(self) -> int:
        return len(self.logprobs)

    @property
    def goal(self) -> int:
        """Entries to be computed before the row decodes; its last token goes through the decode step itself. A warmed
        prefix ends there: an MTP module reads every token with the one that follows."""
        return len(self.context) - 1

    def digests_until(self, n_blocks: int, block: int) -> list[bytes]:
        """The digests of the first blocks of the context, of so many tokens each."""
        while len(self.digests) < n_blocks:
            before = self.digests[-1] if self.digests else root(self.request.cache_key)
            first = len(self.digests) * block
            self.digests.append(digest(before, self.context[first : first + block]))
        return self.digests[:n_blocks]


@dataclass(frozen=True)
class Piece:
    """A stretch of a row's context that this step computes."""

    row: Row
    start: int
    length: int


@dataclass(frozen=True)
class Plan:
    """What the model's side does in one step, in this order."""

    placed: list[Row]
    """Rows whose blocks are others than in the plan before."""
    found: list[tuple[int, int]]
    """(source block, target block): half full blocks that were found. A later one may write over an earlier source."""
    pieces: list[Piece]
    copies: list[tuple[int, int]]
    """(source block, target block)."""
    decoding: list[Row]
    """Rows that get a token, by slot; what their caches lack, the step computes."""
    batch_changed: bool
    """Whether `decoding`, or what it brings, differs from that of the plan before."""


class Scheduler:
    """At most `max_batch` requests at once, at most `prefill_tokens` of prompts in a step."""

    def __init__(
        self, max_batch: int, prefill_tokens: int, n_blocks: int, *, block: int = BLOCK, finds_prefixes: bool = True
    ) -> None:
        self.max_batch, self.prefill_tokens, self.finds_prefixes = max_batch, prefill_tokens, finds_prefixes
        self.block = block
        self.pool = BlockPool(n_blocks)
        self.waiting: dict[str, Row] = {}
        self.running: dict[str, Row] = {}
        self.warming: deque[Request] = deque()
        self.n_preempted = 0
        self._free_slots = list(range(max_batch - 1, -1, -1))
        self._n_arrived = 0
        self._decoding: list[Row] = []
        self._slots: list[int] = []
        self._found: list[tuple[int, int]] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self.warming)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self.waiting or request_id in self.running

    def add(self, request: Request) -> None:
        assert request.id not in self, "the engine refuses ids in use"
        self._n_arrived += 1
        self.waiting[request.id] = Row.of(request, self._n_arrived)

    def find(self, request_id: str) -> Row | None:
        """The row of a request that waits or runs."""
        return self.running.get(request_id) or self.waiting.get(request_id)

    def remove(self, request_id: str) -> Row | None:
        """Forget a request wherever it stands (finished or aborted); None when it is not here."""
        if request_id in self.waiting:
            return self.waiting.pop(request_id)
        row = self.running.pop(request_id, None)
        if row is not None:
            self._vacate(row)
        return row

    def requeue(self) -> None:
        """Send every running row back to the head of the queue, and find nothing again: the entries are void."""
        rows = sorted(self.running.values(), key=lambda row: row.arrival)
        self.running = {}
        for row in rows:
            self._vacate(row)
        self.waiting = {row.request.id: row for row in rows if not row.is_warm} | self.waiting
        self.warming.extendleft(row.request for row in rows if row.is_warm)
        self.pool.forget()

    def schedule(self) -> Plan:
        """Give blocks to those who grow, start those who fit, and say what the model's side must do."""
        placed = self._grow()
        self._found = []
        copies: list[tuple[int, int]] = []
        sharers = self._admit(placed) if self.waiting else []
        if self.warming and not self.running and not self.waiting:
            self._warm(placed)
        pieces = self._cut()
        pieces, joined = self._join(pieces, {donor for donor, _ in sharers})
        done = {piece.row: piece.start + piece.length for piece in pieces}
        for donor, row in sharers:
            if done.get(donor, donor.n_cached) >= len(row.context) - 1:
                copies += self._share(donor, row, placed)
        decoding = [
            row
            for row in self.running.values()
            if not row.is_warm and (done.get(row, row.n_cached) == row.goal or row in joined)
        ]
        decoding.sort(key=lambda row: row.slot)
        slots = [row.slot for row in decoding]
        changed = decoding != self._decoding or slots != self._slots or bool(joined)
        self._decoding, self._slots = decoding, slots
        return Plan(placed, self._found, pieces, copies, decoding, changed)

    def computed(self, pieces: list[Piece]) -> None:
        """These pieces are in the cache."""
        for piece in pieces:
            piece.row.n_cached += piece.length
            self._register(piece.row)
            if piece.row.is_warm and piece.row.n_cached == piece.row.goal:
                self.remove(piece.row.request.id)

    def grown(self, row: Row) -> None:
        """The row's context has the tokens of a decode step; all but the last are in the cache."""
        row.n_cached = len(row.context) - 1
        self._register(row)

    def check(self) -> None:
        """The invariants, for tests and for an idle moment: no block or slot leaks, none is held by a stranger."""
        rows = list(self.running.values())
        self.pool.check([row.blocks for row in rows])
        assert not self.running.keys() & self.waiting.keys(), "a request runs and waits at once"
        assert all(row.slot == -1 and not row.blocks for row in self.waiting.values()), "a waiting request holds memory"
        slots = [row.slot for row in rows] + self._free_slots
        assert sorted(slots) == list(range(self.max_batch)), f"slots lost or held twice: {sorted(slots)}"
        assert all(len(row.blocks) * self.block >= row.n_cached for row in rows), "a row has entries outside its blocks"

    # ---- inside ----

    def _vacate(self, row: Row) -> None:
        n_full = row.n_cached // self.block
        if self.finds_prefixes and row.n_cached % self.block:
            before = row.digests_until(n_full, self.block)[-1] if n_full else root(row.request.cache_key)
            tokens = row.context[n_full * self.block : row.n_cached]
            self.pool.register(row.blocks[n_full], digest(before, tokens), half_full=True)
        self.pool.release(row.blocks)
        self._free_slots.append(row.slot)
        row.slot, row.blocks, row.n_cached, row.n_registered, row.drafts = -1, [], 0, 0, []

    def _grow(self) -> list[Row]:
        """Blocks for the next token and the drafts of every decoding row; the youngest give way when none is left."""
        placed = []
        for row in sorted(self._decoding, key=lambda row: row.arrival):
            if row.slot < 0 or row.request.id not in self.running:
                continue
            missing = self._blocks_for(len(row.context) + len(row.drafts)) - len(row.blocks)
            if missing > self.pool.n_available:
                row.drafts = []
                missing = self._blocks_for(len(row.context)) - len(row.blocks)
            while missing > self.pool.n_available and row.slot >= 0:
                self._preempt(max(self.running.values(), key=lambda row: (row.is_warm, row.arrival)))
            if missing > 0 and row.slot >= 0:
                row.blocks += self.pool.take(missing)
                placed.append(row)
        return [row for row in placed if row.slot >= 0]

    def _preempt(self, row: Row) -> None:
        del self.running[row.request.id]
        self._vacate(row)
        if row.is_warm:
            self.warming.appendleft(row.request)
        else:
            self.waiting = {row.request.id: row} | self.waiting
            self.n_preempted += 1

    def _admit(self, placed: list[Row]) -> list[tuple[Row, Row]]:
        """Start waiting requests in order; pairs of a row and one that waits to share its prompt."""
        for row in [row for row in self.running.values() if row.is_warm]:
            self._preempt(row)
        donors = {row.prompt_hash: row for row in self.running.values()}
        sharers: list[tuple[Row, Row]] = []
        for row in list(self.waiting.values()):
            if len(self.running) + len(sharers) >= self.max_batch:
                break
            donor = donors.get(row.prompt_hash) if row.n_generated == 0 else None
            if donor is not None and _same_prompt(donor.request, row.request):
                sharers.append((donor, row))
            elif self._start(row, placed):
                donors[row.prompt_hash] = row
            else:
                break  # whoever came later must not take the blocks that this one waits for
        return sharers

    def _start(self, row: Row, placed: list[Row]) -> bool:
        """Find what is known, take blocks for the rest of the context; False when they are not there."""
        found, half = self._known(row)
        missing = self._blocks_for(len(row.context)) - len(found)
        spare = len(self._decoding) if self.running else 0  # every running row may want one more soon
        if missing + spare > self.pool.n_available - self.pool.n_idle(found):
            return False
        self.pool.share(found)
        own = self.pool.take(missing)
        if half is not None:
            self._found.append((half[0], own[0]))
        self._place(row, found + own, len(found) * self.block + (half[1] if half else 0), placed)
        row.n_registered = len(found)
        return True

    def _known(self, row: Row) -> tuple[list[int], tuple[int, int] | None]:
        """The full blocks that the context begins with, and the half full one after them and how much of it."""
        if not self.finds_prefixes:
            return [], None
        found = self.pool.known(row.digests_until(row.goal // self.block, self.block))
        before = row.digests[len(found) - 1] if found else root(row.request.cache_key)
        first = len(found) * self.block
        return found, self.pool.half_full(before, row.context[first : min(first + self.block - 1, row.goal)])

    def _share(self, donor: Row, row: Row, placed: list[Row]) -> list[tuple[int, int]]:
        """Start a row on the blocks of one with the same prompt; what to copy, if anything."""
        n_cached = len(row.context) - 1
        n_full = n_cached // self.block
        own = self._blocks_for(len(row.context)) - n_full
        if own + len(self._decoding) > self.pool.n_available:
            return []
        shared = donor.blocks[:n_full]
        self.pool.share(shared)
        self._place(row, shared + self.pool.take(own), n_cached, placed)
        row.n_registered = n_full
        return [(donor.blocks[n_full], row.blocks[n_full])] if n_cached % self.block else []

    def _place(self, row: Row, blocks: list[int], n_cached: int, placed: list[Row]) -> None:
        self.waiting.pop(row.request.id, None)
        row.slot, row.blocks, row.n_cached = self._free_slots.pop(), blocks, n_cached
        row.n_found = n_cached if row.n_found < 0 else row.n_found
        self.running[row.request.id] = row
        placed.append(row)

    def _warm(self, placed: list[Row]) -> None:
        request = self.warming.popleft()
        row = Row.of(request)
        row.is_warm = True
        known, half = self._known(row)
        if len(known) * self.block + (half[1] if half else 0) < row.goal:
            self._start(row, placed)  # without room there is nothing to gain

    def _cut(self) -> list[Piece]:
        """Share out the step's budget of prompt tokens."""
        rest = {row: row.goal - row.n_cached for row in self.running.values() if row.n_cached < row.goal}
        if not rest:
            return []
        budget, given = self.prefill_tokens, dict.fromkeys(rest, 0)
        oldest = min(rest, key=lambda row: row.arrival)
        shortest_first = sorted(rest, key=lambda row: (rest[row], row.arrival))
        for row, limit in [(oldest, (budget + 1) // 2), *((row, budget) for row in shortest_first)]:
            length = min(limit, budget, rest[row] - given[row])
            given[row] += length
            budget -= length
        return [Piece(row, row.n_cached, length) for row, length in given.items() if length]

    def _join(self, pieces: list[Piece], donors: set[Row]) -> tuple[list[Piece], set[Row]]:
        """Let short last pieces go with the decode step, as long as padding all rows to the longest stays cheap."""
        last = {p.row for p in pieces if p.start + p.length == p.row.goal and not p.row.is_warm}
        n_rows = len(last) + sum(not row.is_warm and row.n_cached == row.goal for row in self.running.values())
        longest = min(JOINED_TOKENS, self.prefill_tokens) // max(n_rows, 1)
        joined = {p.row for p in pieces if p.row in last - donors and p.length + 1 <= longest}
        return [p for p in pieces if p.row not in joined], joined

    def _blocks_for(self, n_tokens: int) -> int:
        return -(-n_tokens // self.block)

    def _register(self, row: Row) -> None:
        n_full = row.n_cached // self.block
        if self.finds_prefixes and n_full > row.n_registered:
            keys = row.digests_until(n_full, self.block)
            for index in range(row.n_registered, n_full):
                self.pool.register(row.blocks[index], keys[index])
            row.n_registered = n_full


def _same_prompt(a: Request, b: Request) -> bool:
    return a.cache_key == b.cache_key and a.prompt_ids == b.prompt_ids
