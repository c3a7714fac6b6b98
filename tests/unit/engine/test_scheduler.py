"""The scheduler against a simulated memory: blocks that remember which token of whose context was written into them."""

import random

import pytest

from sobre.engine.blocks import BlockPool, digest, root
from sobre.engine.request import Request, SamplingParams
from sobre.engine.scheduler import Scheduler
from sobre.models.config import BLOCK


def request(id, prompt=(1, 2, 3), key=""):
    return Request(id, tuple(prompt), SamplingParams(max_tokens=8), cache_key=key)


def scheduler_with(*ids, max_batch=8, prefill_tokens=100, n_blocks=64):
    scheduler = Scheduler(max_batch, prefill_tokens, n_blocks)
    for n, id in enumerate(ids):
        scheduler.add(request(id, (n, 2, 3)))
    return scheduler


class Memory:
    """What the model's side does with a plan, on token ids; every read is checked against the row's own context."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.cells = {}
        self.n_computed = 0

    def put(self, row, position):
        owner = (row.request.cache_key, tuple(row.context[: position + 1]))
        self.cells[row.blocks[position // BLOCK], position % BLOCK] = owner

    def read(self, row, length):
        for position in range(length):
            key, prefix = self.cells[row.blocks[position // BLOCK], position % BLOCK]
            assert key == row.request.cache_key, "read what another key computed"
            assert prefix == tuple(row.context[: position + 1]), "read an entry of another context"

    def copy(self, source, target):
        for place in range(BLOCK):
            if (source, place) in self.cells:
                self.cells[target, place] = self.cells[source, place]

    def step(self):
        """One step; the requests that got a token."""
        plan = self.scheduler.schedule()
        assert sum(piece.length for piece in plan.pieces) <= self.scheduler.prefill_tokens
        for source, target in plan.found:
            self.copy(source, target)
        for piece in plan.pieces:
            self.read(piece.row, piece.start)
            for position in range(piece.start, piece.start + piece.length):
                self.put(piece.row, position)
            self.n_computed += piece.length
        for source, target in plan.copies:
            self.copy(source, target)
        self.scheduler.computed(plan.pieces)
        for row in plan.decoding:
            self.read(row, row.n_cached)
            self.n_computed += row.goal - row.n_cached
            for position in range(row.n_cached, len(row.context) + len(row.drafts)):
                self.put(row, position) if position < len(row.context) else self.cells.__setitem__(
                    (row.blocks[position // BLOCK], position % BLOCK), ("draft", ())
                )
            row.context.append(hash((row.request.id, len(row.context))) % 50)
            row.logprobs.append(0.0)
            row.drafts = [0] * (len(row.context) % 3)
            self.scheduler.grown(row)
        return [row.request.id for row in plan.decoding]


def test_requests_start_in_order_of_arrival_and_wait_when_the_batch_is_full():
    scheduler = scheduler_with("a", "b", "c", max_batch=2)
    plan = scheduler.schedule()
    assert [row.request.id for row in plan.decoding] == ["a", "b"]
    assert list(scheduler.waiting) == ["c"]


def test_a_short_last_piece_goes_with_the_decode_step_unless_it_makes_the_others_long():
    scheduler = scheduler_with("a", n_blocks=200, max_batch=40)
    plan = scheduler.schedule()
    assert not plan.pieces
    assert [row.goal - row.n_cached for row in plan.decoding] == [2]
    for row in plan.decoding:
        row.context.append(0)
        row.logprobs.append(0.0)
        scheduler.grown(row)
    for n in range(24):
        scheduler.add(request(f"short{n}", (n, 9, 9, 9)))
    plan = scheduler.schedule()
    assert len(plan.decoding) == 25
    assert not plan.pieces  # 25 rows of 4 tokens are the limit
    scheduler.add(request("one more", (50, 9, 9, 9)))
    plan = scheduler.schedule()
    assert len(plan.decoding) == 26
    assert {piece.row for piece in plan.pieces} == set(plan.decoding) - {scheduler.running["a"]}


def test_the_plan_says_when_the_decoding_rows_are_the_same_as_before():
    scheduler = scheduler_with("a", "b")
    memory = Memory(scheduler)
    assert memory.step() == ["a", "b"]
    assert not scheduler.schedule().batch_changed
    scheduler.remove("b")
    assert scheduler.schedule().batch_changed


def test_samples_of_one_prompt_share_its_full_blocks_and_copy_the_half_full_one():
    scheduler = Scheduler(8, 100, 64)
    for id in "abc":
        scheduler.add(request(id, range(BLOCK + 5)))
    memory = Memory(scheduler)
    assert memory.step() == ["a", "b", "c"]
    assert memory.n_computed == BLOCK + 4
    a, b, c = scheduler.running.values()
    assert a.blocks[0] == b.blocks[0] == c.blocks[0]
    assert len({a.blocks[1], b.blocks[1], c.blocks[1]}) == 3
    scheduler.check()


def test_a_next_turn_computes_no_token_of_the_turn_before_but_its_last():
    scheduler = Scheduler(8, 100, 64)
    scheduler.add(request("first", range(BLOCK + 5)))
    memory = Memory(scheduler)
    for _ in range(3):
        memory.step()
    context = scheduler.remove("first").context
    scheduler.check()
    memory.n_computed = 0
    for id, key in (("next", ""), ("beside it", ""), ("a stranger", "other")):
        scheduler.add(request(id, [*context, 7, 8], key))
    assert set(memory.step()) == {"next", "beside it", "a stranger"}
    row, stranger = scheduler.running["next"], scheduler.running["a stranger"]
    assert (row.n_found, stranger.n_found) == (len(context) - 1, 0)
    assert memory.n_computed == 2 + len(context) + 1  # up to the last token, of two that share what is new, and of one
    for id in ("next", "beside it", "a stranger"):
        scheduler.remove(id)
    scheduler.check()
    scheduler.add(request("another way", [*context[:-3], 9, 9, 9, 9]))  # parts from it inside the half full block
    memory.step()
    assert scheduler.running["another way"].n_found == BLOCK


def test_a_found_half_full_block_may_be_the_one_that_memory_is_taken_from():
    scheduler = Scheduler(4, 100, 2)
    scheduler.add(request("first", range(5)))
    memory = Memory(scheduler)
    memory.step()
    context = scheduler.remove("first").context
    (found,) = scheduler.pool._idle
    scheduler.add(request("next", [*context, *range(20)]))
    assert memory.step() == ["next"]
    assert scheduler.running["next"].n_found == 5
    assert scheduler.running["next"].blocks[1] == found  # read from first, written over then
    scheduler.check()


def test_whoever_shares_a_prompt_waits_until_all_of_it_is_there():
    scheduler = Scheduler(8, 10, 64)
    for id in "ab":
        scheduler.add(request(id, range(25)))
    memory = Memory(scheduler)
    assert [memory.step() for _ in range(3)] == [[], [], ["a", "b"]]
    assert memory.n_computed == 24


def test_the_oldest_prompt_gets_half_of_the_budget_and_the_shortest_the_rest():
    scheduler = Scheduler(8, 10, 64)
    for id, length in (("old", 60), ("long", 40), ("short", 4)):
        scheduler.add(request(id, [ord(id[0])] * length))
    plan = scheduler.schedule()
    assert {piece.row.request.id: piece.length for piece in plan.pieces} == {"old": 5, "long": 2}
    assert [(row.request.id, row.goal - row.n_cached) for row in plan.decoding] == [("short", 3)]


def test_the_youngest_gives_way_and_comes_back_with_all_that_it_had():
    scheduler = Scheduler(2, 100, 4)
    scheduler.add(request("old", range(BLOCK)))
    scheduler.add(request("young", range(1, BLOCK + 1)))
    memory = Memory(scheduler)
    while scheduler.n_preempted == 0:
        memory.step()
    assert list(scheduler.waiting) == ["young"]
    context = list(scheduler.waiting["young"].context)
    scheduler.remove("old")
    memory.step()
    assert scheduler.running["young"].context[: len(context)] == context
    scheduler.check()


def test_requeued_rows_go_before_those_that_waited_and_nothing_is_found_again():
    scheduler = scheduler_with("a", "b", "c", max_batch=2)
    memory = Memory(scheduler)
    memory.step()
    scheduler.requeue()
    assert list(scheduler.waiting) == ["a", "b", "c"]
    scheduler.check()
    memory.cells.clear()  # any read of old entries would now fail
    memory.step()


def test_removing_an_unknown_request_says_so():
    assert scheduler_with("a").remove("b") is None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.slow
def test_random_work_in_little_memory_reads_only_its_own_entries_and_leaks_nothing(seed):
    rng = random.Random(seed)
    max_batch, n_blocks = rng.randint(1, 6), rng.randint(6, 20)
    scheduler = Scheduler(max_batch, rng.choice([3, 20, 100]), n_blocks, finds_prefixes=seed != 5)
    memory, alive, longest = Memory(scheduler), {}, 5 * BLOCK
    for n in range(1200):
        action = rng.random()
        if action < 0.15 and len(alive) < 30:
            prompt = [rng.randrange(2)] * rng.choice([1, 16, 17, 33, 50]) + [rng.randrange(3)]
            alive[str(n)] = rng.randint(1, longest - len(prompt))
            scheduler.add(request(str(n), prompt, key=rng.choice(["", "x"])))
        elif action < 0.2 and alive:
            victim = rng.choice(sorted(alive))
            assert scheduler.remove(victim).request.id == victim
            del alive[victim]
        elif action < 0.21:
            scheduler.requeue()
        elif action < 0.24:
            scheduler.warming.append(request(f"warm{n}", [rng.randrange(2)] * rng.choice([5, 40, 64])))
        else:
            for id in memory.step():
                alive[id] -= 1
                if not alive[id]:
                    scheduler.remove(id)
                    del alive[id]
        scheduler.check()
        assert alive.keys() == {id for id, row in scheduler.running.items() if not row.is_warm} | set(scheduler.waiting)
    for _ in range(5000):
        for id in memory.step():
            alive[id] -= 1
            if not alive[id]:
                scheduler.remove(id)
                del alive[id]
        if not scheduler.has_work:
            break
    assert not alive
    assert not scheduler.has_work
    scheduler.check()
    assert scheduler.pool.n_available == n_blocks


def test_a_pool_forgets_the_end_of_the_least_recently_used_prefix_first():
    pool = BlockPool(4)
    keys = [digest(root(""), [n]) for n in range(3)]
    blocks = pool.take(3)
    for block, key in zip(blocks, keys, strict=True):
        pool.register(block, key)
    pool.release(blocks)
    assert pool.known(keys) == blocks
    pool.take(2)
    assert pool.known(keys) == blocks[:2]
    pool.check([[3, 2]])


def test_a_digest_depends_on_the_key_and_on_all_tokens_before():
    first, other = digest(root("a"), [1] * BLOCK), digest(root("b"), [1] * BLOCK)
    assert first != other
    assert digest(first, [2] * BLOCK) != digest(other, [2] * BLOCK)
    assert digest(root("a"), [1] * BLOCK) == first
