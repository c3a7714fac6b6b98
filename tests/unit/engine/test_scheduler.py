import random

import pytest

from sobre.engine.request import Request, SamplingParams
from sobre.engine.scheduler import Copy, Scheduler


def request(id, prompt=(1, 2, 3)):
    return Request(id, tuple(prompt), SamplingParams(max_tokens=8))


def scheduler_with(*ids, max_batch=8, prefill_tokens=100):
    scheduler = Scheduler(max_batch, prefill_tokens)
    for n, id in enumerate(ids):
        scheduler.add(request(id, (n, 2, 3)))
    return scheduler


def slots(scheduler):
    return {row.request.id: row.slot for row in scheduler.running}


def test_requests_start_in_order_of_arrival_and_wait_when_the_batch_is_full():
    scheduler = scheduler_with("a", "b", "c", max_batch=2)
    plan = scheduler.schedule()
    assert [row.request.id for row in plan.prefills] == ["a", "b"]
    assert slots(scheduler) == {"a": 0, "b": 1}
    assert list(scheduler.waiting) == ["c"]


def test_a_finished_row_is_replaced_in_its_slot_by_the_next_request():
    scheduler = scheduler_with("a", "b", "c", max_batch=2)
    scheduler.schedule()
    scheduler.remove("a")
    plan = scheduler.schedule()
    assert slots(scheduler) == {"c": 0, "b": 1}
    assert plan.moves == []


def test_a_gap_that_nobody_waits_for_is_closed_by_the_last_row_with_what_it_has_cached():
    scheduler = scheduler_with("a", "b", "c")
    scheduler.schedule()
    scheduler.running[2].context.append(9)
    scheduler.remove("a")
    plan = scheduler.schedule()
    assert plan.moves == [Copy(source=2, target=0, length=3)]
    assert slots(scheduler) == {"c": 0, "b": 1}


def test_the_plan_says_when_the_running_rows_are_the_same_as_before():
    scheduler = scheduler_with("a", "b")
    assert scheduler.schedule().batch_changed
    assert not scheduler.schedule().batch_changed
    scheduler.remove("b")  # the last row: nothing moves, but the batch is another
    assert scheduler.schedule().batch_changed


def test_equal_prompts_are_computed_once_and_copied():
    scheduler = Scheduler(8, 100)
    for id in "abc":
        scheduler.add(request(id))
    plan = scheduler.schedule()
    assert [row.request.id for row in plan.prefills] == ["a"]
    assert plan.copies == [Copy(0, 1, 2), Copy(0, 2, 2)]


def test_a_shared_prompt_is_copied_from_where_its_row_has_moved_to():
    scheduler = Scheduler(4, 100)
    for id in "wxyz":
        scheduler.add(request(id, (ord(id), 2, 3)))
    scheduler.schedule()
    for id in "wxy":
        scheduler.remove(id)
    scheduler.add(request("twin", (ord("z"), 2, 3)))
    plan = scheduler.schedule()
    assert slots(scheduler) == {"twin": 0, "z": 1}
    assert plan.moves == [Copy(3, 1, 2)]
    assert plan.copies == [Copy(1, 0, 2)]


def test_prompts_beyond_the_token_limit_wait_for_the_next_step_but_one_alone_always_starts():
    scheduler = Scheduler(8, prefill_tokens=5)
    scheduler.add(request("long", range(20)))
    scheduler.add(request("short", range(1, 5)))
    assert [row.request.id for row in scheduler.schedule().prefills] == ["long"]
    assert [row.request.id for row in scheduler.schedule().prefills] == ["short"]


def test_requeued_rows_go_before_those_that_waited_and_keep_their_context():
    scheduler = scheduler_with("a", "b", "c", max_batch=2)
    scheduler.schedule()
    scheduler.running[0].context.append(9)
    scheduler.requeue()
    assert list(scheduler.waiting) == ["a", "b", "c"]
    scheduler.check()
    assert scheduler.schedule().prefills[0].context == [0, 2, 3, 9]


def test_removing_an_unknown_request_says_so():
    assert scheduler_with("a").remove("b") is None


@pytest.mark.parametrize("seed", range(4))
def test_random_additions_and_removals_leak_no_slot_and_leave_no_gap(seed):
    rng = random.Random(seed)
    scheduler, alive = Scheduler(rng.randint(1, 6), prefill_tokens=12), set()
    for n in range(1000):
        action = rng.random()
        if action < 0.4:
            scheduler.add(request(str(n), [rng.randrange(3) for _ in range(rng.randint(1, 6))]))
            alive.add(str(n))
        elif action < 0.7 and alive:
            alive.remove(victim := rng.choice(sorted(alive)))
            assert scheduler.remove(victim).request.id == victim
        elif action < 0.72:
            scheduler.requeue()
        else:
            scheduler.schedule()
            assert [row.slot for row in scheduler.running] == list(range(scheduler.n_running))
            assert scheduler.n_running == scheduler.max_batch or not scheduler.waiting or scheduler.n_running
        scheduler.check()
        assert alive == {row.request.id for row in scheduler.running} | set(scheduler.waiting)
    for id in alive:
        scheduler.remove(id)
    scheduler.schedule()
    assert not scheduler.has_work
    assert scheduler.running == []
