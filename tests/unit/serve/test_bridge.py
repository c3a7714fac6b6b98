"""One thread owns the engine, and whatever happens there reaches those who wait."""

import asyncio
import threading
import time

import pytest

from sobre.engine.request import Request, SamplingParams
from sobre.errors import EngineError, PromptTooLong
from sobre.serve.bridge import Bridge


def request(name, n=5):
    return Request(name, (1,), SamplingParams(max_tokens=n))


@pytest.fixture
def engine(scripted):
    return lambda n=5, **settings: scripted(lambda _: list(range(10, 10 + n)), **settings)


async def read(stream):
    try:
        return [part async for part in stream.parts()]
    finally:
        stream.close()


def run(engine, scenario):
    """Run `scenario(bridge)` with a bridge that is closed afterwards; a hang fails."""

    async def main():
        bridge = Bridge(engine)
        bridge.start()
        try:
            return await asyncio.wait_for(scenario(bridge), 10)
        finally:
            await asyncio.wait_for(bridge.close(), 10)

    return asyncio.run(main())


def test_tokens_come_in_order_with_their_reason_and_only_one_thread_touches_the_engine(engine):
    made = engine()

    async def scenario(bridge):
        streams = [bridge.submit([request(f"{i}/0"), request(f"{i}/1")]) for i in range(10)]
        return await asyncio.gather(*(read(stream) for stream in streams))

    for parts in run(made, scenario):
        for index in (0, 1):
            mine = [part for part in parts if part.index == index]
            assert [part.token.token_id for part in mine] == [10, 11, 12, 13, 14]
            assert [part.finish_reason for part in mine] == [None] * 4 + ["length"]
    assert len(made.threads) == 1
    assert threading.get_ident() not in made.threads


def test_the_shares_add_up_to_the_time_that_the_engine_worked(engine):
    made, spent = engine(delay_s=0.005), []
    step = made.step

    def timed():
        started = time.perf_counter()
        tokens = [] if len(spent) % 3 == 1 else step()  # every third step reads a long prompt and brings no token
        time.sleep(0.005)
        spent.append(time.perf_counter() - started)
        return tokens

    made.step = timed

    async def scenario(bridge):
        streams = [bridge.submit([request(str(i), n)]) for i, n in enumerate((1, 3, 5))]
        return [sum(part.seconds for part in parts) for parts in await asyncio.gather(*map(read, streams))]

    shares = run(made, scenario)
    assert sum(shares) == pytest.approx(sum(spent), rel=0.05)
    assert shares == sorted(shares), "who gets more tokens pays more"


def test_a_request_that_the_engine_refuses_fails_alone(engine):
    async def scenario(bridge):
        good, bad = bridge.submit([request("good")]), bridge.submit([request("bad", 10_000)])
        with pytest.raises(PromptTooLong, match="script"):
            await read(bad)
        return await read(good)

    assert len(run(engine(), scenario)) == 5


def test_a_step_that_raises_fails_the_one_it_is_laid_at_and_the_others_go_on(engine):
    made = engine(n=20, delay_s=0.02)

    async def scenario(bridge):
        streams = [bridge.submit([request(f"{i}", 20)]) for i in range(3)]
        await asyncio.sleep(0.1)
        made.fail_step = RuntimeError("poisoned")
        results = await asyncio.gather(*(read(stream) for stream in streams), return_exceptions=True)
        return results, await read(bridge.submit([request("next")])), bridge.n_open

    (first, second, third), after, n_open = run(made, scenario)
    assert isinstance(third, RuntimeError)
    assert [[part.token.token_id for part in parts] for parts in (first, second)] == [list(range(10, 30))] * 2
    assert len(after) == 5
    assert n_open == 0
    assert made.aborted == ["2"]


def test_a_fault_that_stays_ends_one_request_after_the_other(engine):
    made = engine(delay_s=0.01)

    def broken():
        raise RuntimeError("for good")

    made.step = broken

    async def scenario(bridge):
        streams = [bridge.submit([request(f"{i}")]) for i in range(3)]
        return await asyncio.gather(*(read(stream) for stream in streams), return_exceptions=True), bridge.failure

    results, failure = run(made, scenario)
    assert [type(result) for result in results] == [RuntimeError] * 3
    assert failure is None
    assert sorted(made.aborted) == ["0", "1", "2"]


def test_an_engine_that_cannot_even_free_its_places_is_dead_and_says_so_to_everybody(engine):
    made = engine(delay_s=0.02)

    async def scenario(bridge):
        stream = bridge.submit([request("first")])
        await asyncio.sleep(0.03)
        made.fail_abort, made.fail_step = RuntimeError("broken for good"), RuntimeError("poisoned")
        with pytest.raises(RuntimeError, match="poisoned"):
            await read(stream)
        while bridge.failure is None:
            await asyncio.sleep(0.005)
        with pytest.raises(EngineError, match="has stopped"):
            bridge.submit([request("second")])

    run(made, scenario)


def test_memory_is_counted_once_each_time_that_the_work_ends_and_a_leak_stops_the_engine(engine, caplog):
    made = engine(3, delay_s=0.002)

    async def scenario(bridge):
        counts = []
        for i in range(2):
            await read(bridge.submit([request(f"{i}/0"), request(f"{i}/1")]))
            while made.n_checks == i:
                await asyncio.sleep(0.002)
            bridge.abort("not here")  # wakes the thread: nothing was done since
            await bridge.embed([(1, 2)], "mean")
            counts.append(made.n_checks)
        made.fail_check = AssertionError("block 7 is held by nobody")
        await read(bridge.submit([request("last")]))
        while bridge.failure is None:
            await asyncio.sleep(0.002)
        with pytest.raises(EngineError, match="has stopped"):
            bridge.submit([request("next")])
        return counts, bridge.failure

    counts, failure = run(made, scenario)
    assert counts == [1, 2]
    assert failure is made.fail_check
    assert "the engine has stopped: AssertionError at" in caplog.text


def test_who_waits_for_vectors_when_the_engine_dies_is_told(engine):
    made = engine(50, delay_s=0.05)

    async def scenario(bridge):
        stream = bridge.submit([request("first", 50)])
        await asyncio.sleep(0.02)  # now the engine is inside its first step
        made.fail_abort = RuntimeError("broken for good")
        stream.close()
        with pytest.raises(RuntimeError, match="for good"):
            await bridge.embed([(1, 2)], "mean")

    run(made, scenario)


def test_a_request_that_arrives_while_the_engine_dies_is_told_too(engine):
    made = engine(delay_s=0.1)

    async def scenario(bridge):
        first = bridge.submit([request("first")])
        await asyncio.sleep(0.02)  # now the engine is inside its first step
        made.fail_abort, made.fail_step = RuntimeError("broken for good"), RuntimeError("poisoned")
        late = bridge.submit([request("late")])
        for stream in (first, late):
            with pytest.raises(RuntimeError):
                await read(stream)

    run(made, scenario)


def test_closing_a_stream_frees_its_places_whether_running_or_waiting(engine):
    made = engine(n=1000, delay_s=0.005)

    async def scenario(bridge):
        stream = bridge.submit([request("a/0", 100), request("a/1", 100)])
        other = bridge.submit([request("b", 5)])
        async for _ in stream.parts():
            break
        stream.close()
        stream.close()
        rest = await read(other)
        while made.left:
            await asyncio.sleep(0.001)
        return rest, bridge.n_open

    rest, n_open = run(made, scenario)
    assert sorted(made.aborted) == ["a/0", "a/1"]
    assert len(rest) == 5
    assert n_open == 0


def test_aborting_one_choice_leaves_the_other_to_its_end(engine):
    made = engine(n=20, delay_s=0.002)

    async def scenario(bridge):
        stream, seen = bridge.submit([request("a/0", 20), request("a/1", 20)]), []
        async for part in stream.parts():
            seen.append(part.index)
            if part.index == 0 and seen.count(0) == 3:
                stream.abort(0)
        stream.close()
        return seen

    seen = run(made, scenario)
    assert (seen.count(0), seen.count(1)) == (3, 20)
    assert made.aborted == ["a/0"]


def test_closing_the_bridge_tells_those_who_still_wait(engine):
    made = engine(n=1000, delay_s=0.01)

    async def main():
        bridge = Bridge(made)
        bridge.start()
        reading = asyncio.create_task(read(bridge.submit([request("a", 150)])))
        await asyncio.sleep(0.05)
        await asyncio.wait_for(bridge.close(), 5)
        with pytest.raises(EngineError, match="stopping"):
            await asyncio.wait_for(reading, 5)

    asyncio.run(main())
